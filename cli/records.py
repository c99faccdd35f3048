"""The JSON objects that `im` prints, the columns that a table shows of them, and how people read their values."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imcore.cli import names
from imcore.errors import ImError
from imcore.model.direct import is_direct, peer_of
from imcore.model.values import Ack, Group, LogLine, Member, Message, MessageStatus, MessageTally, Receipt, Unread

if TYPE_CHECKING:
    from imcore.chat import Chat

Record = Mapping[str, object]
"""A line of `--json`, which is also a row of a table."""

NAMES = {"gid", "uid", "sender_uid", "client_msgid", "online"}
"""The keys of records whose texts are names."""

SENTENCES = {"state", "what", "redis", "sql", "reason"}
"""The keys of records whose texts may quote names."""

MESSAGE_COLUMNS = ("msgid", "time", "gid", "sender_uid", "content")
TALLY_COLUMNS = ("msgid", "time", "sender_uid", "read", "unread", "content")
GROUP_COLUMNS = ("gid", "members", "messages", "last_msgid")
MEMBER_COLUMNS = ("uid", "last_ack_msgid", "unread", "online")
ACK_COLUMNS = ("gid", "uid", "last_ack_msgid", "advanced")
READER_COLUMNS = ("uid", "read", "read_at")
RECEIPT_COLUMNS = ("gid", "msgid", "read", "unread")
UNREAD_COLUMNS = ("gid", "unread")
LOG_COLUMNS = ("gid", "time", "sender_uid", "content", "state")

_KEYS: dict[type, tuple[str, ...]] = {
    Message: ("gid", "msgid", "seq", "sender_uid", "time", "content", "client_msgid"),
    LogLine: ("gid", "msgid", "time", "sender_uid", "content", "client_msgid", "state"),
    Receipt: RECEIPT_COLUMNS,
    Unread: UNREAD_COLUMNS,
}
"""The keys of the types that have more fields than are printed."""
_KEYS_IF_SET = ("recalled", "recalls", "meta", "recipients")

_RULE = re.compile(r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)[+-]?\d")
"""The beginning of a value of TZ that gives the distance from UTC itself, as in POSIX, instead of naming a zone."""

Value = Message | LogLine | Group | Member | Ack | Receipt | Unread


def record_of(value: Value) -> Record:
    """Return the object of a value. It has the keys of _KEYS_IF_SET only where they apply."""
    keys = _KEYS.get(type(value)) or [field.name for field in fields(value)]
    record = {key: getattr(value, key) for key in keys}
    extra = {key: getattr(value, key, None) for key in _KEYS_IF_SET}
    return record | {key: each for key, each in extra.items() if each is not None and each is not False}


def tally_record(tally: MessageTally) -> Record:
    return {**record_of(tally.message), "read": tally.read, "unread": tally.unread}


def status_record(status: MessageStatus) -> Record:
    return {
        **record_of(status.message),
        "read": len(status.read_by),
        "unread": len(status.unread_by),
        "read_by": [{"uid": reader.uid, "read_at": reader.read_at} for reader in status.read_by],
        "unread_by": list(status.unread_by),
    }


def reader_records(status: MessageStatus) -> list[Record]:
    read: list[Record] = [{"uid": reader.uid, "read": True, "read_at": reader.read_at} for reader in status.read_by]
    return read + [{"uid": uid, "read": False, "read_at": None} for uid in status.unread_by]


def with_peers(uid: str, members_of: Callable[[str], Iterable[str]]) -> Callable[[Record], Record]:
    """Return a function that adds the other user, as `peer`, to an object about a one-to-one chat."""
    peers: dict[str, str | None] = {}

    def with_peer(record: Record) -> Record:
        gid = str(record["gid"])
        if is_direct(gid) and peers.get(gid) is None:  # an unknown peer may be known later
            peers[gid] = peer_of(gid, uid, members_of(gid))
        peer = peers.get(gid)
        return record if peer is None else {**record, "peer": peer}

    return with_peer


def peers_at(chat: "Chat", uid: str) -> Callable[[Record], Record]:
    """Return `with_peers` for the peers that the server knows. While it is away a gid stays as it is."""

    def members(gid: str) -> Iterator[str]:
        with suppress(ImError):
            yield from (member.uid for member in chat.members(gid))

    return with_peers(uid, members)


def records_for(chat: "Chat", uid: str, values: Iterable[Value]) -> Iterator[Record]:
    """Yield the objects of values that a user asked for, with the peers of the user's one-to-one chats."""
    return map(peers_at(chat, uid), map(record_of, values))


def readable(record: Record, *, local: bool, short: bool) -> Record:
    """Return a record as a table shows it: unmistakable names, written times, and why a text is missing."""
    cells = {
        key: shown(value, local=local, short=short) if isinstance(value, datetime) else _cell(key, value)
        for key, value in record.items()
    }
    if record.get("peer") is not None:
        cells["gid"] = names.direct(str(record["peer"]))
    if record.get("recalls"):
        cells["content"] = f"(recalls {record['recalls']})"
    elif record.get("recalled"):
        cells["content"] = "(recalled)"
    return cells


def _cell(key: str, value: object) -> object:
    if key in NAMES and isinstance(value, str):
        return names.name(value) or None  # a difference may be about no group
    return names.in_sentence(value) if key in SENTENCES and isinstance(value, str) else value


def iso(moment: datetime) -> str:
    """Return the time in ISO 8601, UTC, with milliseconds."""
    return _iso(moment.astimezone(UTC), "milliseconds")


def shown(moment: datetime, *, local: bool, short: bool) -> str:
    """Return the time as people read it, in UTC or in this machine's zone with its offset.

    A short one has a blank and no milliseconds: `2026-11-30 10:19:10Z`, `2026-11-30 11:19:10+01`.
    """
    text = _iso(_in_zone(moment) if local else moment.astimezone(UTC), "seconds" if short else "milliseconds")
    return text.replace("T", " ").removesuffix(":00") if short else text


def zone_trouble() -> str | None:
    """Return a warning if this machine does not know the zone that TZ names, else None."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 (only --local-time needs it)

    name = os.environ.get("TZ", "").removeprefix(":")
    if not name or _RULE.match(name) or os.path.isfile(name):
        return None
    try:
        ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        return f"this machine does not know the time zone {name!r} (TZ): times are in UTC"
    return None


def _in_zone(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except (OverflowError, ValueError):  # in this zone it is before the year 1, or after 9999
        return moment.astimezone(UTC)


def _iso(moment: datetime, timespec: str) -> str:
    text = moment.isoformat(timespec=timespec)
    return text.replace("+00:00", "Z") if moment.tzinfo is UTC else text
