"""The columns that a table shows of the objects of `imcore.model.records`, and how people read their values."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from imcore.cli import names
from imcore.errors import ImError, RedisUnavailable
from imcore.model.erased import is_alias
from imcore.model.records import Record, Value, iso_as_given, record_of, with_peers
from imcore.model.values import MessageStatus

if TYPE_CHECKING:
    from imcore.chat import Chat

NAMES = {"gid", "uid", "sender_uid", "client_msgid", "online"}
"""The keys of records whose texts are names."""

SENTENCES = {"state", "what", "redis", "sql", "reason"}
"""The keys of records whose texts may quote names."""

MESSAGE_COLUMNS = ("msgid", "time", "gid", "sender_uid", "content")
TALLY_COLUMNS = ("msgid", "time", "sender_uid", "read", "unread", "delivered", "content")
GROUP_COLUMNS = ("gid", "members", "messages", "last_msgid")
MEMBER_COLUMNS = ("uid", "last_ack_msgid", "unread", "online")
ACK_COLUMNS = ("gid", "uid", "last_ack_msgid", "advanced")
READER_COLUMNS = ("uid", "delivered", "read", "read_at")
RECEIPT_COLUMNS = ("gid", "msgid", "read", "unread", "delivered")
INBOX_COLUMNS = ("gid", "unread", "marked", "time", "sender_uid", "content")
TOTALS_COLUMNS = ("groups", "unread_groups", "unread")
MARK_COLUMNS = ("gid", "uid", "unread")
UNREAD_COLUMNS = ("gid", "unread")
POLICY_COLUMNS = ("gid", "receipts", "asked_by")
USER_COLUMNS = ("uid", "receipts")
LOG_COLUMNS = ("gid", "time", "sender_uid", "content", "state")

_RULE = re.compile(r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)[+-]?\d")
"""The beginning of a value of TZ that gives the distance from UTC itself, as in POSIX, instead of naming a zone."""


def reader_records(status: MessageStatus) -> list[Record]:
    """Return the recipients, those first who have read the message. All of these have got it."""
    arrived = set(status.delivered_to)
    read = [(reader.uid, True, True, reader.read_at) for reader in status.read_by]
    unread = [(uid, uid in arrived, False, None) for uid in status.unread_by]
    return [dict(zip(READER_COLUMNS, values, strict=True)) for values in (*read, *unread)]


def peers_at(chat: "Chat", uid: str) -> Callable[[Record], Record]:
    """Return `with_peers` for the peers that the server knows. While it is away a gid stays as it is."""

    def members(gid: str) -> Iterator[str]:
        with suppress(ImError):
            yield from (member.uid for member in chat.members(gid))

    return with_peers(uid, members)


def records_for(chat: "Chat", uid: str, values: Iterable[Value]) -> Iterator[Record]:
    """Yield the objects of values that a user asked for, with the peers of the user's one-to-one chats."""
    return map(peers_at(chat, uid), map(record_of, values))


def check_whole(silent: Sequence[int]) -> None:
    """Raise RedisUnavailable if partitions of a cluster were silent: what was shown is not all."""
    if silent:
        numbers = ", ".join(map(str, silent))
        raise RedisUnavailable(f"no answer from the node of partition {numbers}: groups there are left out, try again")


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
    elif record.get("content") == "" and is_alias(str(record.get("sender_uid"))):
        cells["content"] = "(erased)"
    return cells


def _cell(key: str, value: object) -> object:
    if key in NAMES and isinstance(value, str):
        return names.name(value) or None  # a difference may be about no group
    return names.in_sentence(value) if key in SENTENCES and isinstance(value, str) else value


def shown(moment: datetime, *, local: bool, short: bool) -> str:
    """Return the time as people read it, in UTC or in this machine's zone with its offset.

    A short one has a blank and no milliseconds: `2026-11-30 10:19:10Z`, `2026-11-30 11:19:10+01`.
    """
    text = iso_as_given(_in_zone(moment) if local else moment.astimezone(UTC), "seconds" if short else "milliseconds")
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
