"""What operations query of the database, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imcore.model.rows import MessageRow
from imcore.operations.effects import SqlQuery

if TYPE_CHECKING:
    from imcore.sql.database import Database


@dataclass(frozen=True, slots=True)
class MessageByMsgid(SqlQuery[MessageRow | None]):
    """One message (packed msgid)."""

    gid: str
    msgid: int

    def run(self, database: "Database") -> MessageRow | None:
        """Return None if there is none."""
        return database.message(self.gid, self.msgid)


@dataclass(frozen=True, slots=True)
class MessagesByMsgid(SqlQuery[dict[int, MessageRow]]):
    """Messages (packed msgids) of a group."""

    gid: str
    msgids: Sequence[int]

    def run(self, database: "Database") -> dict[int, MessageRow]:
        """Return those that exist, by msgid."""
        return database.messages(self.gid, self.msgids)


@dataclass(frozen=True, slots=True)
class MessagesAfter(SqlQuery[list[MessageRow]]):
    """Messages after a msgid (packed), up to another one, oldest first."""

    gid: str
    after: int
    until: int
    limit: int

    def run(self, database: "Database") -> list[MessageRow]:
        """Return at most `limit`."""
        return database.messages_after(self.gid, self.after, until=self.until, limit=self.limit)


@dataclass(frozen=True, slots=True)
class MessagesBefore(SqlQuery[list[MessageRow]]):
    """The last messages before a msgid (packed), oldest first."""

    gid: str
    before: int
    limit: int

    def run(self, database: "Database") -> list[MessageRow]:
        """Return at most `limit`."""
        return database.messages_before(self.gid, self.before, limit=self.limit)


@dataclass(frozen=True, slots=True)
class ReadTimes(SqlQuery[dict[str, int]]):
    """When each reader read a message (packed msgid)."""

    gid: str
    msgid: int

    def run(self, database: "Database") -> dict[str, int]:
        """Return the times in ms since 1970, by uid."""
        return database.read_times(self.gid, self.msgid)
