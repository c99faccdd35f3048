"""Single cells, made readable: somebody may have written a row by hand.

SQLite stores any value in any column. PostgreSQL stores times that Python cannot represent: `infinity`, BC, year 10000.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import product
from types import NoneType
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    any_,
    bindparam,
    case,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
)

from imcore import msgid as msgids
from imcore.model.rows import NO_TIME, MessageRow
from imcore.sql.tables import ERASURES, GROUP_MSGS, NAME

log = logging.getLogger(__name__)

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
    "meta": (str, NoneType),
}
_SOUND = frozenset(product(*_KINDS.values()))

_IMPOSSIBLE = tuple(f"{name} NOT BETWEEN 1 AND {msgids.HIGHEST}" for name in ("msgid", "recalls"))
_BEGIN, _END = (f"TIMESTAMPTZ '{date} 00:00:00+00'" for date in ("0001-01-01", "10000-01-01"))
_SUSPECT = {
    "sqlite": (
        *(f"typeof({name}) <> 'integer'" for name in ("msgid", "seq")),
        *(f"typeof({name}) <> 'text'" for name in ("sender_uid", "content")),
        *(f"typeof({name}) NOT IN ('integer', 'null')" for name in ("span", "recalls")),
        *(f"typeof({name}) NOT IN ('text', 'null')" for name in ("client_msgid", "meta")),
        "sent_at IS NOT NULL AND strftime('%Y-%m-%dT%H:%M:%fZ', sent_at) IS NOT sent_at",
        "sent_at < '0001'",
        *_IMPOSSIBLE,
    ),
    "postgresql": (f"sent_at < {_BEGIN}", f"sent_at >= {_END}", *_IMPOSSIBLE),
}
"""Every unreadable row meets one of these conditions. A readable row may meet one, too."""

_SENT_AT = {
    "sqlite": "group_msgs.sent_at",
    "postgresql": f"""CASE WHEN group_msgs.sent_at >= {_BEGIN} AND group_msgs.sent_at < {_END}
        THEN CAST(round(EXTRACT(EPOCH FROM group_msgs.sent_at) * 1000) AS BIGINT)
        WHEN group_msgs.sent_at IS NOT NULL THEN {NO_TIME} END""",
}
"""`sent_at` as it leaves the database: the stored text from SQLite, milliseconds since 1970 from PostgreSQL."""


def is_recalled() -> ColumnElement[bool]:
    """Return the condition for messages that a tombstone recalls."""
    tombstone = GROUP_MSGS.alias()
    return exists().where(tombstone.c.gid == GROUP_MSGS.c.gid, tombstone.c.recalls == GROUP_MSGS.c.msgid)


def is_erased() -> ColumnElement[bool]:
    """Return the condition for messages of users who are being erased."""
    return GROUP_MSGS.c.sender_uid.in_(select(ERASURES.c.uid))


def sender_name() -> ColumnElement[str]:
    """Return the sender of a message: the alias of a user who is being erased."""
    c, sender = ERASURES.c, GROUP_MSGS.c.sender_uid
    alias = select(c.alias).where(c.uid == sender, c.gid == "").scalar_subquery()
    return func.coalesce(alias, sender).label("sender_uid")


def suspect(dialect: str) -> ColumnElement[bool]:
    """Return the condition for rows of group_msgs that `faults` has to examine."""
    return or_(*(literal_column(f"({condition})") for condition in _SUSPECT[dialect]))


def has_msgid() -> ColumnElement[bool]:
    """Return the condition for rows with a possible msgid. Readers skip all other rows.

    Only for queries that use the index on msgid anyway: it would lead any other query to that index.
    """
    return GROUP_MSGS.c.msgid.between(1, msgids.HIGHEST)


def is_among(column: ColumnElement[str], names: Sequence[str], dialect: str) -> ColumnElement[bool]:
    """Return the condition that a column holds one of these names, however many they are.

    PostgreSQL gets one array: a statement with a parameter for each name takes its driver longer than the answer.
    """
    if dialect == "postgresql":
        return column == any_(bindparam(None, list(names), ARRAY(NAME)))
    return column.in_(names)


def has_text() -> ColumnElement[bool]:
    """Return the condition for rows with a content or a meta."""
    return or_(GROUP_MSGS.c.content != "", GROUP_MSGS.c.meta.is_not(None))


class MessageReader:
    """Makes MessageRows of stored rows. Logs the first row that cannot be read."""

    def __init__(self, address: str, dialect: str) -> None:
        self._address = address
        self._sent_at: ColumnElement[Any] = literal_column(_SENT_AT[dialect]).label("sent_at")
        self._has_warned = False

    def columns(
        self,
        *,
        text: Callable[[ColumnElement[Any]], ColumnElement[Any]] = lambda column: column,
        recalled: ColumnElement[bool] | None = None,
    ) -> tuple[ColumnElement[Any], ...]:
        """Return the columns to select for `rows`. `text` changes content and meta. A `recalled` row has neither.

        Nor have messages of users who are being erased, whose names do not leave the database.
        """
        c, erased = GROUP_MSGS.c, is_erased()
        content = case((erased, ""), else_=text(c.content)).label("content")
        meta = case((erased, null()), else_=text(c.meta)).label("meta")
        client_msgid = case((erased, null()), else_=c.client_msgid).label("client_msgid")
        recalled = (false() if recalled is None else recalled).label("recalled")
        before = c.gid, c.msgid, c.seq, sender_name(), c.span, content, client_msgid
        return *before, self._sent_at, c.recalls, recalled, meta

    def rows(self, selected: Iterable[Sequence[Any]]) -> Iterator[MessageRow]:
        """Yield the messages of selected `columns`, unreadable cells made readable; leave out unreadable msgids."""
        return (self._row(values) for values in selected if is_msgid(values[1]))

    def _row(self, values: Sequence[Any]) -> MessageRow:
        gid, msgid, seq, sender_uid, span, content, client_msgid, sent_at, recalls, recalled, meta = values
        sent_at_ms = _sent_at_ms(sent_at)
        is_sound = tuple(map(type, values)) in _SOUND and sent_at_ms != NO_TIME
        if not is_sound or not (recalls is None or is_msgid(recalls)):
            self._warn(values)
            gid, sender_uid, content = text_of(gid), text_of(sender_uid), text_of(content)
            seq, span = int_of(seq), span if type(span) is int else None
            recalls = recalls if is_msgid(recalls) else None
            client_msgid = None if client_msgid is None else text_of(client_msgid)
            meta = None if meta is None else text_of(meta)
        row = MessageRow(
            gid, msgid, seq, sender_uid, span, content, client_msgid, sent_at_ms, recalls, bool(recalled), meta
        )
        return row.without_text() if recalled else row

    def _warn(self, values: Sequence[Any]) -> None:
        if not self._has_warned:
            self._has_warned = True
            gid, msgid, unreadable = (
                text_of(values[0]),
                msgids.unpack(msgid_of(values[1])),
                " and a ".join(faults(values)),
            )
            text = "%s: message %s of group %r has a %s that cannot be read (`im check` names all of these)"
            log.warning(text, self._address, msgid, gid, unreadable)


def faults(values: Sequence[Any]) -> list[str]:
    """Return the names of the unreadable columns, from the values of `MessageReader.columns`."""
    cells = dict(zip(_KINDS, values, strict=True))
    unreadable = [name for name, value in cells.items() if type(value) not in _KINDS[name]]
    if "sent_at" not in unreadable and _sent_at_ms(cells["sent_at"]) == NO_TIME:
        unreadable.append("sent_at")
    ids = [name for name in ("msgid", "recalls") if name not in unreadable and cells[name] is not None]
    return unreadable + [name for name in ids if not is_msgid(cells[name])]


def decoded(raw: bytes) -> str | bytes:
    """Return the text that SQLite has stored; its bytes if they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def text_of(value: object) -> str:
    if isinstance(value, str):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def int_of(value: object) -> int:
    """Return a cell as a number; IMPOSSIBLE, which no message has, for anything else."""
    return value if type(value) is int else msgids.IMPOSSIBLE


def is_msgid(value: object) -> bool:
    return type(value) is int and 0 < value <= msgids.HIGHEST


def msgid_of(value: object) -> int:
    """Return a cell as a packed msgid; IMPOSSIBLE for anything else."""
    return value if type(value) is int and is_msgid(value) else msgids.IMPOSSIBLE


def _sent_at_ms(value: object) -> int | None:
    if value is None or type(value) is int:
        return value
    try:
        ms = msgids.to_ms(datetime.fromisoformat(text_of(value)))
    except ValueError:  # not a time, or a time without a zone
        return NO_TIME
    return ms if msgids.EARLIEST_MS <= ms <= msgids.LATEST_MS else NO_TIME
