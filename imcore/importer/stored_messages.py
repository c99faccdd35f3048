"""The stored messages of a group, by their client_msgids, and the recalls of them."""

from contextlib import suppress

from imcore import msgid as msgids
from imcore.errors import UnknownMessage
from imcore.importer.event import Event
from imcore.repair import window
from imcore.sql import queries
from imcore.system import System


class StoredMessages:
    """The stored messages of a group. Those of this run and of Redis are kept in memory.

    Older ones are looked up in SQL: Redis knows a client_msgid for a day only.
    """

    def __init__(self, system: System, gid: str) -> None:
        self._client = system.client
        self._database = system.database
        self._gid = gid
        self._msgids: dict[str, str] = {}
        self._msgids_of_senders: dict[tuple[str, str], str] = {}
        self._tombstones: dict[str, str] = {}
        self._tombstones_in_sql: dict[str, str] | None = None
        self.mentioned: set[str] = set()
        """The msgids of the messages that this run has come to."""
        self._newest: str | None = None
        self._sql_was_empty = not self._database.messages_after(gid, msgids.NONE, limit=1)
        self._read_redis()
        self.is_empty = self._sql_was_empty and self._newest is None
        """Whether the group had no messages when the run came to it."""

    def find(self, sender_uid: str, client_msgid: str) -> str | None:
        """Return the msgid of a sender's message, or None if it is not stored."""
        msgid = self._msgids_of_senders.get((sender_uid, client_msgid))
        if msgid or self._sql_was_empty:  # then all messages are in memory
            return msgid
        row = self._database.message_by_client_msgid(self._gid, client_msgid, sender_uid=sender_uid)
        return msgids.unpack(row.msgid) if row else None

    def add(self, sender_uid: str, client_msgid: str, msgid: str) -> None:
        self._msgids.setdefault(client_msgid, msgid)
        self._msgids_of_senders[sender_uid, client_msgid] = msgid

    def add_tombstone(self, msgid: str, tombstone: str) -> None:
        self._tombstones[msgid] = tombstone

    def named(self, event: Event, *, before: str | None = None) -> str:
        """Return the msgid of the message, or of its recall, that an event names. Raise UnknownMessage.

        It must be stored before `before`, or be one that this run has come to.
        """
        msgid = self._msgid(event.client_msgid)
        if msgid and event.of_recall:
            msgid = self.tombstone(msgid)
        if msgid and (not before or msgid in self.mentioned or msgids.pack(msgid) < msgids.pack(before)):
            return msgid
        recall = "recalled " if event.of_recall else ""
        raise UnknownMessage(f"no {recall}message of {self._gid!r} has the client_msgid {event.client_msgid!r}")

    def has_come_to(self, event: Event) -> bool:
        """Return whether this run has come to the message that an event names."""
        with suppress(UnknownMessage):
            return self.named(event) in self.mentioned
        return False

    def tombstone(self, msgid: str) -> str | None:
        """Return the msgid of the tombstone that recalls a message, or None."""
        if self._tombstones_in_sql is None and not self._sql_was_empty:
            recalls = queries.recalls(self._database, [self._gid])
            self._tombstones_in_sql = {msgids.unpack(recalled): msgids.unpack(each) for _, each, recalled in recalls}
        return self._tombstones.get(msgid) or (self._tombstones_in_sql or {}).get(msgid)

    def _msgid(self, client_msgid: str) -> str | None:
        if client_msgid not in self._msgids:
            if row := self._database.message_by_client_msgid(self._gid, client_msgid):
                self._msgids[client_msgid] = msgids.unpack(row.msgid)
            else:
                self._read_redis()
        return self._msgids.get(client_msgid)

    def _read_redis(self) -> None:
        """Add the messages that came to Redis since the last call: SQL may not have them yet."""
        start = f"({self._newest}" if self._newest else "-"
        for row, _ in window.live(self._client, self._gid, first=start):
            self._newest = msgids.unpack(row.msgid)
            if row.client_msgid:
                self.add(row.sender_uid, row.client_msgid, self._newest)
            elif row.recalls:
                self.add_tombstone(msgids.unpack(row.recalls), self._newest)
