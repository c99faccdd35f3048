"""The tables and views of the database, as SQLModel classes.

Migrations create them; a test compares both. No table has a row per message and member: `msg_acks` is a view. All ids
are packed (see `imcore.msgid`), so they sort as messages do.
"""

from datetime import UTC, datetime
from functools import lru_cache

from sqlalchemy import BigInteger, Dialect, Index, Integer, PrimaryKeyConstraint, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import TEXT, TIMESTAMP
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import Field, SQLModel

from imcore import msgid as msgids

NAME = Text().with_variant(TEXT(collation="C"), "postgresql")
"""Every database compares names by code point: their order never depends on a server's locale."""

_HAS_CLIENT_MSGID = text("client_msgid IS NOT NULL")
_RECALLS = text("recalls IS NOT NULL")


def to_iso(ms: int) -> str:
    """Return `YYYY-MM-DDTHH:MM:SS.mmmZ`, which sorts as time does. Raise ValueError outside the years 1 to 9999."""
    second, rest = divmod(ms, 1000)
    return f"{_iso_second(second)}.{rest:03d}Z"


@lru_cache(maxsize=1024)
def _iso_second(second: int) -> str:
    return msgids.from_ms(1000 * second).replace(tzinfo=None).isoformat()


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime to the millisecond: TIMESTAMP WITH TIME ZONE on PostgreSQL, ISO 8601 text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime] | TypeEngine[str]:
        if dialect.name == "postgresql":
            return TIMESTAMP(precision=3, timezone=True)
        return Text()

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        """Truncate to milliseconds: PostgreSQL would round, perhaps to a time in the future."""
        if value is None:
            return None
        ms = msgids.to_ms(value)
        return msgids.from_ms(ms) if dialect.name == "postgresql" else to_iso(ms)

    def process_result_value(self, value: datetime | str | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        return value and value.astimezone(UTC)


class Stored(SQLModel, registry=registry()):
    """Base of the tables. It has its own registry: SQLModel's default belongs to the program around imcore."""


class Derived(SQLModel, registry=registry()):
    """Base of the views. They are only read."""


class GroupMsg(Stored, table=True):
    """A message, stored once however many members the group has."""

    __tablename__ = "group_msgs"
    __table_args__ = (
        PrimaryKeyConstraint("gid", "msgid"),
        Index("ix_group_msgs_recalls", "gid", "recalls", sqlite_where=_RECALLS, postgresql_where=_RECALLS),
        Index("ix_group_msgs_sender", "sender_uid"),
        Index("ix_group_msgs_client", "gid", "client_msgid", sqlite_where=_HAS_CLIENT_MSGID).ddl_if(dialect="sqlite"),
        # Ids of clients are long. A hash of 8 bytes needs a third of the space.
        Index(
            "ix_group_msgs_client_hash",
            text("hashtextextended(gid || client_msgid, 0)"),
            postgresql_where=_HAS_CLIENT_MSGID,
        ).ddl_if(dialect="postgresql"),
    )

    # With fixed widths first, PostgreSQL adds no padding.
    msgid: int = Field(sa_type=BigInteger, primary_key=True)
    seq: int = Field(sa_type=BigInteger)
    span: int | None = Field(default=None, sa_type=BigInteger)
    time: datetime = Field(sa_type=UtcTime)
    sent_at: datetime | None = Field(default=None, sa_type=UtcTime)
    recalls: int | None = Field(default=None, sa_type=BigInteger)
    confirmed_read: int = Field(default=0, sa_type=Integer, sa_column_kwargs={"server_default": text("0")})
    confirmed_delivered: int = Field(default=0, sa_type=Integer, sa_column_kwargs={"server_default": text("0")})
    gid: str = Field(sa_type=NAME, primary_key=True)
    sender_uid: str = Field(sa_type=NAME)
    client_msgid: str | None = Field(default=None, sa_type=NAME)
    meta: str | None = Field(default=None, sa_type=Text)
    content: str = Field(sa_type=Text)


class GroupSpan(Stored, table=True):
    """A membership (joined_msgid, left_msgid] and its positions. See `imcore.model.rows.SpanRow`."""

    __tablename__ = "group_spans"
    __table_args__ = (
        Index("ix_group_spans_uid", "uid"),
        # Every ack updates a row. With free space on its page no index entry changes.
        {"sqlite_with_rowid": False, "postgresql_with": {"fillfactor": 70}},
    )

    gid: str = Field(sa_type=NAME, primary_key=True)
    uid: str = Field(sa_type=NAME, primary_key=True)
    joined_msgid: int = Field(sa_type=BigInteger, primary_key=True)
    left_msgid: int | None = Field(default=None, sa_type=BigInteger)
    changed: int = Field(sa_type=BigInteger)
    acked_msgid: int = Field(sa_type=BigInteger)
    delivered_msgid: int | None = Field(default=None, sa_type=BigInteger)


class Bookmark(Stored, table=True):
    """Where a member has read in private, and marked messages unread. See `imcore.model.rows.BookmarkRow`."""

    __tablename__ = "bookmarks"
    __table_args__ = ({"sqlite_with_rowid": False},)

    gid: str = Field(sa_type=NAME, primary_key=True)
    uid: str = Field(sa_type=NAME, primary_key=True)
    joined_msgid: int = Field(sa_type=BigInteger)
    private_msgid: int = Field(sa_type=BigInteger)
    mark_msgid: int = Field(sa_type=BigInteger)
    changed: int = Field(sa_type=BigInteger)


REACHES = range(11)
"""Length classes of offset moves: the moves of class r are shorter than `longest(r)`."""


def longest(reach: int) -> int:
    """Return the limit of a class (packed): 1 ms for class 0, then 16 times more for each class."""
    return 1 << (13 + 4 * reach)


def reach(length: int) -> int:
    """Return the class of a move of this length (packed), which is at least 1."""
    return max(0, length.bit_length() - 10) // 4


class OffsetMove(Stored, table=True):
    """The offsets of `uids` moved from `start` to `msgid`, at the time of the journal's `entry` or a second later.

    These users read the messages between then. `imcore.sql.moves` reads the cell. A move of class `reach` that covers
    message m ends within [m, m + longest(reach)), which is one range of the primary key.
    """

    __tablename__ = "offset_moves"
    __table_args__ = (
        PrimaryKeyConstraint("gid", "reach", "msgid", "entry", "start"),
        # Rows arrive in order of time: a BRIN index finds old rows, and costs writers next to nothing.
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
    """A chat group, with or without messages, and its receipt policy. See `imcore.model.rows.GroupRow`."""

    __tablename__ = "chat_groups"
    __table_args__ = ({"sqlite_with_rowid": False},)

    gid: str = Field(sa_type=NAME, primary_key=True)
    created_at: datetime = Field(sa_type=UtcTime)
    receipts: str = Field(default="names", sa_type=Text, sa_column_kwargs={"server_default": text("'names'")})
    asked_by: str = Field(default="sender", sa_type=Text, sa_column_kwargs={"server_default": text("'sender'")})
    policy_changed: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})


class UserSetting(Stored, table=True):
    """Whether a user's receipts are `on` or `off`. Users without a row have them on."""

    __tablename__ = "user_settings"
    __table_args__ = ({"sqlite_with_rowid": False},)

    uid: str = Field(sa_type=NAME, primary_key=True)
    receipts: str = Field(sa_type=Text)
    changed: int = Field(sa_type=BigInteger)


class GroupDeletion(Stored, table=True):
    """A group that was deleted: journal entries up to `entry` (packed id) say nothing about a group of that gid.

    Until `is_done`, all rows of the gid are of the deleted group.
    """

    __tablename__ = "deleted_groups"
    __table_args__ = ({"sqlite_with_rowid": False},)

    gid: str = Field(sa_type=NAME, primary_key=True)
    entry: int = Field(sa_type=BigInteger)
    is_done: bool


class UserErasure(Stored, table=True):
    """A user who is being erased, until that has ended: their name, and the alias that takes its place everywhere.

    A row with a gid gives a one-to-one chat, whose gid says the names, another gid. The row without a uid counts how
    often an erasure has begun or ended. See `imcore.sql.erasures`.
    """

    __tablename__ = "erasures"
    __table_args__ = ({"sqlite_with_rowid": False},)

    uid: str = Field(sa_type=NAME, primary_key=True)
    gid: str = Field(sa_type=NAME, primary_key=True)
    alias: str = Field(sa_type=NAME)


class SystemMeta(Stored, table=True):
    """Facts about the data as a whole, like the number of partitions."""

    __tablename__ = "imcore_meta"
    __table_args__ = ({"sqlite_with_rowid": False},)

    name: str = Field(sa_type=NAME, primary_key=True)
    value: str = Field(sa_type=Text)


class GroupUser(Derived, table=True):
    """A current member; `last_ack_msgid` is None while the offset is before the first message.

    So is `last_delivered_msgid` while nothing has arrived. It is never before `last_ack_msgid`.
    """

    __tablename__ = "group_users"

    gid: str = Field(sa_type=NAME, primary_key=True)
    uid: str = Field(sa_type=NAME, primary_key=True)
    last_ack_msgid: int | None = Field(sa_type=BigInteger)
    last_delivered_msgid: int | None = Field(sa_type=BigInteger)
    joined_msgid: int = Field(sa_type=BigInteger)


class MsgAck(Derived, table=True):
    """The receipt of one recipient for one message."""

    __tablename__ = "msg_acks"

    sender_uid: str = Field(sa_type=NAME)
    msgid: int = Field(sa_type=BigInteger, primary_key=True)
    recv_uid: str = Field(sa_type=NAME, primary_key=True)
    gid: str = Field(sa_type=NAME, primary_key=True)
    if_ack: bool
    if_delivered: bool


GROUP_MSGS: Table = Stored.metadata.tables["group_msgs"]
GROUP_SPANS: Table = Stored.metadata.tables["group_spans"]
BOOKMARKS: Table = Stored.metadata.tables["bookmarks"]
OFFSET_MOVES: Table = Stored.metadata.tables["offset_moves"]
META: Table = Stored.metadata.tables["imcore_meta"]
USER_SETTINGS: Table = Stored.metadata.tables["user_settings"]
CHAT_GROUPS: Table = Stored.metadata.tables["chat_groups"]
ERASURES: Table = Stored.metadata.tables["erasures"]
DELETED_GROUPS: Table = Stored.metadata.tables["deleted_groups"]
