"""Removes messages from a local database that no server has.

A failover to a replica that lagged loses the newest messages of its primary. And a primary that was stopped, and was
replaced meanwhile, pushes what lay in its socket as it wakes up, and throws it away.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.device.local_database import LocalDatabase
from imcore.errors import DatabaseNotReady, DatabaseUnavailable, ImError
from imcore.gateway.fanout import PositionMoved, Rewound
from imcore.gateway.listener import Item
from imcore.model.direct import is_direct, peer_of
from imcore.model.values import Message, Receipt
from imcore.operations.effects import Effects, GetKeyspace, call_apart
from imcore.operations.queries import MessagesByMsgid
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import UNKNOWN, HandedMessage
from imcore.util.batches import batches

GROUPS = 500
"""That one round trip asks for."""

_NEWEST = "SELECT gid, max(msgid) FROM messages GROUP BY gid"
_BEFORE = "SELECT max(msgid) FROM messages WHERE gid = ? AND msgid < ?"
# An own message may have been pushed before its sender had an answer: so it is sent again, and stored once.
_SEND_AGAIN = """
INSERT INTO outbox (gid, to_uid, content, client_msgid, written_ms, tried, meta)
SELECT gid, :to_uid, content, client_msgid, :epoch_ms + msgid / 8192, 1, meta FROM messages
WHERE gid = :gid AND msgid > :after AND sender_uid = :uid AND client_msgid IS NOT NULL AND recalls IS NULL
    AND content <> ''
ORDER BY msgid
ON CONFLICT DO NOTHING
"""


def keep_items(local: LocalDatabase, items: Iterable[Item], yielded: Mapping[str, str]) -> dict[str, str]:
    """Keep the items of a poll, and how far groups are here; return how far they will be once these are yielded."""
    kept: list[Message | Receipt] = []
    reached: dict[str, str] = {}
    for item in items:
        if isinstance(item, Rewound):
            local.keep(kept, yielded)
            kept, yielded = [], {}
            reached.pop(item.gid, None)
            rewind(local, item.gid, item.after_msgid)
        elif not isinstance(item, PositionMoved):
            kept.append(item)
            if isinstance(item, Message):
                reached[item.gid] = item.msgid
    local.keep(kept, yielded)
    return reached


def rewind(local: LocalDatabase, gid: str, after: str | None) -> None:
    """Forget the messages of a group after one of them; own ones wait in the outbox again."""
    position = msgids.position_of(after or "0-0")
    to_uid = (peer_of(gid, local.uid) or local.peers().get(gid)) if is_direct(gid) else None
    values = {"gid": gid, "after": position, "uid": local.uid, "to_uid": to_uid, "epoch_ms": msgids.EPOCH_MS}
    with local.transaction() as connection:
        connection.execute(_SEND_AGAIN, values)
        _remove(connection, gid, position)


def _remove(connection: sqlite3.Connection, gid: str, after: int) -> None:
    for table in ("messages", "tallies"):
        connection.execute(f"DELETE FROM {table} WHERE gid = ? AND msgid > ?", (gid, after))  # noqa: S608 (our own names)
    connection.execute("UPDATE resume_points SET msgid = ? WHERE gid = ? AND msgid > ?", (after, gid, after))


def forget_lost(chat: Chat, local: LocalDatabase) -> None:
    """Forget what no server has. Raise TryAgain; where that needs SQL, and it is away, a later session does it."""
    newest = dict(local.rows(_NEWEST, (str, int)))
    for gid in chat.performer.perform(_lost(local.uid, newest)):
        older = _older(local, gid, newest[gid])
        sound = (each for each in older if gid not in chat.performer.perform(_lost(local.uid, {gid: each})))
        rewind(local, gid, msgids.unpack(next(sound, msgids.NONE)))


def _older(local: LocalDatabase, gid: str, position: int) -> Iterator[int]:
    """Yield the messages before a position, newest first."""
    while True:
        [(before,)] = local.rows(_BEFORE, ((int, type(None)),), (gid, position))
        if before is None:
            return
        yield before
        position = before


def _lost(uid: str, newest: dict[str, int]) -> Effects[list[str]]:
    """Return the gids of those of these messages that neither Redis nor SQL has."""
    space = yield from GetKeyspace()
    lost: list[str] = []
    for gids in batches(newest, GROUPS):
        pulls = [message_calls.pull(space, gid, [uid], after=newest[gid], count=1, most_bytes=1) for gid in gids]
        calls = [
            message_calls.with_check(pull, HandedMessage(newest[gid], UNKNOWN))
            for gid, pull in zip(gids, pulls, strict=True)
        ]
        answers = yield from call_apart(calls)
        for gid, answer in zip(gids, answers, strict=True):
            if not isinstance(answer, ImError) and answer.parts_at is not None:  # else the user has left meanwhile
                lost += [gid] if (yield from _is_lost(gid, newest[gid])) else []
    return lost


def _is_lost(gid: str, msgid: int) -> Effects[bool]:
    try:
        stored = yield from MessagesByMsgid(gid, [msgid])
    except DatabaseNotReady:  # no worker has stored anything yet
        return True
    except DatabaseUnavailable:
        return False
    return msgid not in stored
