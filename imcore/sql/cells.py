"""What single columns hold, in a form that no reader stumbles over: somebody may have written a row by hand.

SQLite takes any value in any column. PostgreSQL takes times that Python has not: `infinity`, BC, the year 10000.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import product
from types import NoneType
from typing import Any

from sqlalchemy import ColumnElement, false, literal_column, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from imcore import msgid as msgids
from imcore.model.rows import NO_TIME, MessageRow
from imcore.sql.tables import GROUP_MSGS, to_ms

log = logging.getLogger(__name__)

_EARLIEST_MS = to_ms(datetime(1, 1, 1, tzinfo=UTC))
_LATEST_MS = to_ms(datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC))

_KINDS: dict[str, tuple[type, ...]] = {
    "gid": (str,),
    "msgid": (int,),
    "seq": (int,),
    "sender_uid": (str,),
    "span": (int, NoneType),
    "content": (str,),
    "client_msgid": (str, NoneType),
    "sent_at": (int, str, NoneType),
    "recalls": (int, NoneType),
    "recalled": (bool, int),
}
_SOUND = frozenset(product(*_KINDS.values()))

_IMPOSSIBLE = tuple(f"{name} NOT BETWEEN 1 AND {msgids.HIGHEST}" for name in ("msgid", "recalls"))
_UNLIKELY = {
    "sqlite": (
        *(f"typeof({name}) <> 'integer'" for name in ("msgid", "seq")),
        *(f"typeof({name}) <> 'text'" for name in ("sender_uid", "content")),
        *(f"typeof({name}) NOT IN ('integer', 'null')" for name in ("span", "recalls")),
        "typeof(client_msgid) NOT IN ('text', 'null')",
        "sent_at IS NOT NULL AND strftime('%Y-%m-%dT%H:%M:%fZ', sent_at) IS NOT sent_at",
        "sent_at < '0001'",
        *_IMPOSSIBLE,
    ),
    "postgresql": (
        "sent_at < TIMESTAMPTZ '0001-01-01 00:00:00+00'",
        "sent_at >= TIMESTAMPTZ '10000-01-01 00:00:00+00'",
        *_IMPOSSIBLE,
    ),
}
"""What every row that cannot be read answers to, of each kind of database; so may one that can."""


class StoredTime(FunctionElement[Any]):
    """A time as it leaves the database: milliseconds since 1970 from PostgreSQL, the text that is there from SQLite."""

    inherit_cache = True


@compiles(StoredTime, "postgresql")
def _as_milliseconds(element: StoredTime, compiler: SQLCompiler, **options: Any) -> str:
    column = compiler.process(element.clauses, **options)
    return (
        f"CASE WHEN {column} >= TIMESTAMPTZ '0001-01-01 00:00:00+00'"
        f" AND {column} < TIMESTAMPTZ '10000-01-01 00:00:00+00'"
        f" THEN CAST(round(EXTRACT(EPOCH FROM {column}) * 1000) AS BIGINT)"
        f" WHEN {column} IS NOT NULL THEN {NO_TIME} END"
    )


@compiles(StoredTime, "sqlite")
def _as_it_is(element: StoredTime, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


def message_columns(
    *, content: ColumnElement[str] | None = None, recalled: ColumnElement[bool] | None = None
) -> tuple[ColumnElement[Any], ...]:
    """Return what to select for a MessageReader. `content` may stand for what was said; `recalled` takes that away."""
    c = GROUP_MSGS.c
    said = c.content if content is None else content.label("content")
    sent_at = StoredTime(c.sent_at).label("sent_at")
    is_recalled = (false() if recalled is None else recalled).label("recalled")
    return c.gid, c.msgid, c.seq, c.sender_uid, c.span, said, c.client_msgid, sent_at, c.recalls, is_recalled


def unlikely(dialect: str) -> ColumnElement[bool]:
    """Return the condition for rows of group_msgs that `faults` has to look at."""
    return or_(*(literal_column(f"({condition})") for condition in _UNLIKELY[dialect]))


def has_msgid() -> ColumnElement[bool]:
    """Return the condition for rows whose msgid a message can have. Readers pass over others: nobody can name them.

    It is for queries that count or limit, and go by msgid anyway: any other would go by it on account of this.
    """
    return GROUP_MSGS.c.msgid.between(1, msgids.HIGHEST)


class MessageReader:
    """Makes rows of what a database has of messages. The first one that cannot be read is told."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._told = False

    def rows(self, found: Iterable[Sequence[Any]]) -> Iterator[MessageRow]:
        """Yield the messages of what a query for `message_columns` found.

        What cannot be read becomes what can be; a message whose msgid cannot be read is left out.
        """
        return (self._row(values) for values in found if is_msgid(values[1]))

    def _row(self, values: Sequence[Any]) -> MessageRow:
        gid, msgid, seq, sender_uid, span, content, client_msgid, sent_at, recalls, recalled = values
        sent_at_ms = _sent_at_ms(sent_at)
        is_sound = tuple(map(type, values)) in _SOUND and sent_at_ms != NO_TIME
        if not is_sound or not (recalls is None or is_msgid(recalls)):
            self._tell(values)
            gid, sender_uid, content = text_of(gid), text_of(sender_uid), text_of(content)
            seq, span = whole(seq), span if type(span) is int else None
            recalls = recalls if is_msgid(recalls) else None
            client_msgid = None if client_msgid is None else text_of(client_msgid)
        said = "" if recalled else content
        return MessageRow(gid, msgid, seq, sender_uid, span, said, client_msgid, sent_at_ms, recalls, bool(recalled))

    def _tell(self, values: Sequence[Any]) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "%s: message %s of group %r has a %s that cannot be read (`im check` names all of these)",
                *(
                    self._address,
                    msgids.unpack(msgid_of(values[1])),
                    text_of(values[0]),
                    " and a ".join(faults(values)),
                ),
            )


def faults(values: Sequence[Any]) -> list[str]:
    """Return the names of the columns whose values cannot be read, of the values of `message_columns`."""
    found = [name for (name, kinds), value in zip(_KINDS.items(), values, strict=True) if type(value) not in kinds]
    cells = dict(zip(_KINDS, values, strict=True))
    if "sent_at" not in found and _sent_at_ms(cells["sent_at"]) == NO_TIME:
        found.append("sent_at")
    for name in ("msgid", "recalls"):
        value = cells[name]
        if name not in found and value is not None and not is_msgid(value):
            found.append(name)
    return found


def decoded(raw: bytes) -> str | bytes:
    """Return the text that SQLite has stored; the bytes themselves where they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def text_of(value: object) -> str:
    """Return a name or a content."""
    if isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def whole(value: object) -> int:
    """Return a number, or one that no message has."""
    return value if type(value) is int else msgids.IMPOSSIBLE


def is_msgid(value: object) -> bool:
    """Whether this is the packed msgid of a message."""
    return type(value) is int and 0 < value <= msgids.HIGHEST


def msgid_of(value: object) -> int:
    """Return a packed msgid, or one that no message has."""
    return value if type(value) is int and is_msgid(value) else msgids.IMPOSSIBLE


def _sent_at_ms(value: object) -> int | None:
    if value is None or type(value) is int:
        return value
    try:
        ms = to_ms(datetime.fromisoformat(text_of(value)))
    except (TypeError, ValueError):  # no time, or one without a zone
        return NO_TIME
    return ms if _EARLIEST_MS <= ms <= _LATEST_MS else NO_TIME
