"""The tables and views of the database, as SQLModel classes.

Migrations make and change them; a test holds the two equal. No table has a row per (message, member): `msg_acks` is a
view. Ids are packed msgids (see `imcore.msgid`), so they sort as the messages do.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from sqlalchemy import BigInteger, Dialect, Index, Integer, PrimaryKeyConstraint, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import TEXT, TIMESTAMP
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import Field, SQLModel

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
NAME = Text().with_variant(TEXT(collation="C"), "postgresql")
"""Names are compared by code point on every database: their order never depends on a server's locale."""

_HAS_CLIENT_MSGID = text("client_msgid IS NOT NULL")
_RECALLS = text("recalls IS NOT NULL")


def to_ms(time: datetime) -> int:
    """Return the whole milliseconds since 1970 of an aware datetime."""
    return (time - _EPOCH) // _MS


def to_iso(ms: int) -> str:
    """Return `YYYY-MM-DDTHH:MM:SS.mmmZ`, which sorts as time does. Raise ValueError outside the years 1 to 9999."""
    second, rest = divmod(ms, 1000)
    return f"{_iso_second(second)}.{rest:03d}Z"


@lru_cache(maxsize=1024)
def _iso_second(second: int) -> str:
    try:
        return (_EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()
    except OverflowError:
        raise ValueError(f"{second} s since 1970 is outside the years 1 to 9999") from None


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime to the millisecond: TIMESTAMP WITH TIME ZONE on PostgreSQL, ISO 8601 text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime] | TypeEngine[str]:
        """Choose the column type of a database."""
        if dialect.name == "postgresql":
            return TIMESTAMP(precision=3, timezone=True)
        return Text()

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        """Cut to the millisecond: PostgreSQL would round, to a time that has not come."""
        if value is None:
            return None
        ms = to_ms(value)
        return _EPOCH + ms * _MS if dialect.name == "postgresql" else to_iso(ms)

    def process_result_value(self, value: datetime | str | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return UTC, whatever the session's time zone."""
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        return value and value.astimezone(UTC)


class Stored(SQLModel, registry=registry()):
    """What migrations make as tables. The registry is our own: a program around imcore keeps SQLModel's for itself."""


class Derived(SQLModel, registry=registry()):
    """What migrations make as views: never created from here, never written to."""


class GroupMsg(Stored, table=True):
    """A message, stored once however many members the group has."""

    __tablename__ = "group_msgs"
    __table_args__ = (
        PrimaryKeyConstraint("gid", "msgid"),
        Index("ix_group_msgs_recalls", "gid", "recalls", sqlite_where=_RECALLS, postgresql_where=_RECALLS),
        Index("ix_group_msgs_sender", "sender_uid"),
        Index("ix_group_msgs_client", "gid", "client_msgid", sqlite_where=_HAS_CLIENT_MSGID).ddl_if(dialect="sqlite"),
        # Ids made by clients are long: PostgreSQL indexes 8 bytes of hash instead, which takes a third of the room.
        Index(
            "ix_group_msgs_client_hash",
            text("hashtextextended(gid || client_msgid, 0)"),
            postgresql_where=_HAS_CLIENT_MSGID,
        ).ddl_if(dialect="postgresql"),
    )

    # Fixed widths first: PostgreSQL then pads nothing.
    msgid: int = Field(sa_type=BigInteger, primary_key=True)
    seq: int = Field(sa_type=BigInteger)
    span: int | None = Field(default=None, sa_type=BigInteger)
    time: datetime = Field(sa_type=UtcTime)
    sent_at: datetime | None = Field(default=None, sa_type=UtcTime)
    recalls: int | None = Field(default=None, sa_type=BigInteger)
    confirmed_read: int = Field(default=0, sa_type=Integer, sa_column_kwargs={"server_default": text("0")})
    gid: str = Field(sa_type=NAME, primary_key=True)
    sender_uid: str = Field(sa_type=NAME)
    client_msgid: str | None = Field(default=None, sa_type=NAME)
    content: str = Field(sa_type=Text)


class GroupSpan(Stored, table=True):
    """A membership (joined_msgid, left_msgid] and the offset within it. See `imcore.model.rows.SpanRow` for `changed`."""

    __tablename__ = "group_spans"
    __table_args__ = (
        Index("ix_group_spans_uid", "uid"),
        # Every ack updates a row: with free room on its page no index entry changes.
        {"sqlite_with_rowid": False, "postgresql_with": {"fillfactor": 70}},
    )

    gid: str = Field(sa_type=NAME, primary_key=True)
    uid: str = Field(sa_type=NAME, primary_key=True)
    joined_msgid: int = Field(sa_type=BigInteger, primary_key=True)
    left_msgid: int | None = Field(default=None, sa_type=BigInteger)
    changed: int = Field(sa_type=BigInteger)
    acked_msgid: int = Field(sa_type=BigInteger)


REACHES = range(11)
"""The classes by which moves of offsets are found: the moves of class r are shorter than `longest(r)`."""


def longest(reach: int) -> int:
    """Return what moves of a class are shorter than: 1 ms for class 0, then 16 times as much for each class."""
    return 1 << (13 + 4 * reach)


def reach(length: int) -> int:
    """Return the class of a move of an offset over so much (packed), at least 1."""
    return max(0, length.bit_length() - 10) // 4


class OffsetMove(Stored, table=True):
    """Offsets moved from `start` to `msgid` when the journal's `entry` was written, whose packed id tells the time.

    One row for all whose offsets moved so at once: `uids` is a JSON array of them. They read at that time what lies
    between. Which moves cover a message is an interval query: a move of class `reach` that covers message m ends
    within [m, m + longest(reach)), so each class is one range of the primary key.
    """

    __tablename__ = "offset_moves"
    __table_args__ = (
        PrimaryKeyConstraint("gid", "reach", "msgid", "entry", "start"),
        # Rows come in order of time: a BRIN index finds the old ones, and costs the writers next to nothing.
        Index("ix_offset_moves_entry", "entry", postgresql_using="brin").ddl_if(dialect="postgresql"),
        {"sqlite_with_rowid": False},
    )

    msgid: int = Field(sa_type=BigInteger, primary_key=True)
    entry: int = Field(sa_type=BigInteger, primary_key=True)
    start: int = Field(sa_type=BigInteger, primary_key=True)
    reach: int = Field(sa_type=SmallInteger, primary_key=True)
    gid: str = Field(sa_type=NAME, primary_key=True)
    uids: str = Field(sa_type=Text)


class ChatGroup(Stored, table=True):
    """A chat group, with or without messages."""

    __tablename__ = "chat_groups"
    __table_args__ = ({"sqlite_with_rowid": False},)

    gid: str = Field(sa_type=NAME, primary_key=True)
    created_at: datetime = Field(sa_type=UtcTime)


class SystemMeta(Stored, table=True):
    """Facts about the data as a whole, such as the number of partitions."""

    __tablename__ = "imcore_meta"
    __table_args__ = ({"sqlite_with_rowid": False},)

    name: str = Field(sa_type=NAME, primary_key=True)
    value: str = Field(sa_type=Text)


class GroupUser(Derived, table=True):
    """A current member; `last_ack_msgid` is None while the offset stands before the first message."""

    __tablename__ = "group_users"

    gid: str = Field(sa_type=NAME, primary_key=True)
    uid: str = Field(sa_type=NAME, primary_key=True)
    last_ack_msgid: int | None = Field(sa_type=BigInteger)
    joined_msgid: int = Field(sa_type=BigInteger)


class MsgAck(Derived, table=True):
    """The receipt of one recipient for one message."""

    __tablename__ = "msg_acks"

    sender_uid: str = Field(sa_type=NAME)
    msgid: int = Field(sa_type=BigInteger, primary_key=True)
    recv_uid: str = Field(sa_type=NAME, primary_key=True)
    gid: str = Field(sa_type=NAME, primary_key=True)
    if_ack: bool


GROUP_MSGS: Table = Stored.metadata.tables["group_msgs"]
GROUP_SPANS: Table = Stored.metadata.tables["group_spans"]
OFFSET_MOVES: Table = Stored.metadata.tables["offset_moves"]
META: Table = Stored.metadata.tables["imcore_meta"]
