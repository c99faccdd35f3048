"""Creates a group with its first members: whole to everybody else, however many they are, and however often killed.

No call holds the server for long, so many members come in steps, and nobody sees the group before the last of them. The
same creation again goes on where it ended. One that was given up is undone by whoever needs the gid, or by a worker.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain

from imcore.errors import GroupAbandoned, GroupExists, GroupUnderWay
from imcore.model.values import Group
from imcore.streams.calls import creation_calls, group_calls
from imcore.streams.calls.creation_calls import LOST
from imcore.streams.client import RedisClient
from imcore.streams.keys import uid_of
from imcore.util.backoff import pauses

STEP = 100
"""How many members one call adds or takes away: so many take the server some milliseconds."""

TOLD_AT_ONCE = 500
_PAGE = 1000
_PATIENCE_S = 12.0
"""For how long to wait for another process that creates the group: 10 s after it has died it is out of the way."""


def create(client: RedisClient, gid: str, uids: Sequence[str]) -> Group:
    """Create a group; the same group with the same members again changes nothing.

    Raise GroupExists if there is one with other members, GroupUnderWay if another process creates it all the time.
    """
    make = _create_at_once if len(uids) <= STEP else _create_in_steps
    give_up, pause = time.monotonic() + _PATIENCE_S, pauses()
    while True:
        try:
            return make(client, gid, uids)
        except GroupAbandoned:
            undo(client, gid)
        except GroupUnderWay:
            if time.monotonic() > give_up:
                raise
            time.sleep(next(pause))


def _create_at_once(client: RedisClient, gid: str, uids: Sequence[str]) -> Group:
    return client.call(group_calls.create_group(client.space, gid, uids))


def _create_in_steps(client: RedisClient, gid: str, uids: Sequence[str]) -> Group:
    space, token = client.space, _token(uids)
    begun = client.call(creation_calls.begin(space, gid, token))
    if begun:
        if begun.group.members != len(uids) or not _are_members(client, gid, uids):
            raise GroupExists(f"group {gid!r} exists already, with other members: use `im group add` or `remove`")
        if begun.is_untold:
            tell(client, gid, uids)
        return begun.group
    for some in _steps(uids, STEP):
        _go_on(gid, client.call(creation_calls.add(space, gid, token, some)))
    _go_on(gid, client.call(creation_calls.end(space, gid, token, len(uids))))
    tell(client, gid, uids)
    return Group(gid, len(uids), 0, None)


def _go_on(gid: str, answer: int | None) -> None:
    if answer is LOST:
        raise GroupUnderWay(f"another process creates group {gid!r}: try again in a moment")


def _token(uids: Sequence[str]) -> str:
    """Return the name of a creation: the same for the same members, whoever creates the group."""
    digest = hashlib.sha256()
    for uid in sorted(uids):
        digest.update(uid.encode() + b"\0")
    return digest.hexdigest()


def _are_members(client: RedisClient, gid: str, uids: Sequence[str]) -> bool:
    key = client.space.group(gid).acked
    found = (client.query("ZMSCORE", key, *some) for some in _steps(uids, _PAGE))
    return None not in chain.from_iterable(found)


def tell(client: RedisClient, gid: str, uids: Sequence[str]) -> None:
    """Tell the live sessions of a group's first members that they are in it."""
    pages = list(_steps(uids, TOLD_AT_ONCE)) or [[]]
    for number, some in enumerate(pages, 1):
        client.call(creation_calls.tell(client.space, gid, some, is_last=number == len(pages)))


def undo(client: RedisClient, gid: str, *, mends: bool = False) -> bool:
    """Take away what is left of a creation that was given up; return whether that was done, or it goes on after all.

    Who `mends` the group, which so comes back from SQL, does so while the process lives, too; and nobody begins another
    creation for some seconds, unless the group is there before.
    """
    acked = client.space.group(gid).acked
    while True:
        if not client.call(creation_calls.undo(client.space, gid, uids := _some_of(client, acked), mends=mends)):
            return False
        if not uids:
            return True


def _some_of(client: RedisClient, acked: str) -> list[str]:
    """Return some members: of what can be a name."""
    return list(_names(client.query("ZRANGE", acked, 0, STEP - 1)))


def _names(raw: Iterable[bytes]) -> Iterator[str]:
    for each in raw:
        with suppress(UnicodeDecodeError):
            yield each.decode()


def first_members(client: RedisClient, gid: str) -> Iterator[str]:
    """Yield who has joined a group before its first message; one may come twice.

    The journal does not name those with whom a group was created. Whoever has left meanwhile may be missing here: an
    entry of the journal tells of each of these.
    """
    cursor = 0
    while True:
        cursor, page = client.query("ZSCAN", client.space.group(gid).joined, cursor, "COUNT", _PAGE)
        yield from map(uid_of, _names(span for span, score in page if float(score) == 0))
        if int(cursor) == 0:
            return


def _steps(uids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (uids[at : at + size] for at in range(0, len(uids), size))
