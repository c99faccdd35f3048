"""Replays events of chat, for instance another system's log, from JSON Lines.

**Why there is no checkpoint.** The stored messages are the record of what earlier runs did: an event before a stored
message of its group was applied before that message was sent. A checkpoint beside the data would promise less. It
cannot be written in one step with an event, because groups lie in different partitions. It is ahead of the data once
Redis has lost its last second, and would then leave out messages that are not stored. It does not know a file again in
which one line was corrected, or another file with the same messages. And it says nothing of members whom others have
added or removed since.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    GroupExists,
    InvalidInput,
    NotMember,
    UnknownGroup,
    UnknownMessage,
)
from imcore.importer.event import Event, parse
from imcore.importer.formats import Line, Unreadable, is_blank
from imcore.model.limits import check_content
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams import wire
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import SendResult
from imcore.system import System

T = TypeVar("T")

_MOST_WAITING = 10_000
_ENTRIES_PER_PAGE = 1000

_NumberedEvent = tuple[int, Event]
"""An event with the number of its line."""


@dataclass(slots=True)
class ImportSummary:
    """What an import changed: messages stored, memberships begun and ended, offsets moved; and lines not valid.

    Joins count the users who joined by a message, an ack or a new name, too. An event that changed nothing is not
    counted.
    """

    messages: int = 0
    joins: int = 0
    leaves: int = 0
    acks: int = 0
    errors: int = 0


def import_events(
    chat: Chat,
    lines: Iterable[Line],
    *,
    on_error: Callable[[int, str], None],
    on_progress: Callable[[int], None] | None = None,
) -> ImportSummary:
    """Replay events, one JSON object a line, in their order.

    A message that is stored already (same gid, sender and client_msgid) does nothing, however old it is. The events
    before it in its group were applied before it was stored, so of these only the final membership of each user is
    applied again. Therefore the same import again changes nothing, unless others have changed the members meanwhile,
    and an import that was interrupted continues where it ended. (Events after the last message of a group may have been
    applied or not. If messages of the group were stored already, only the final memberships are applied.) Otherwise the
    sender of a message or ack who is not a member joins first, and the first event of a group creates it.

    A line that is not valid changes nothing: `on_error` gets its number, from 1, and the reason, and the import
    continues. Blank lines are ignored. `on_progress` gets the bytes of each line. `imcore.importer.formats.EventLines`
    reads the lines of a file.

    Raise ConfigurationError for a database that cannot be used, RedisUnavailable, RedisFull or DatabaseUnavailable;
    afterwards the same import can be run again. If others change the same groups at the same time, all of this holds
    but the counts of joins and leaves.
    """
    _make_ready(chat)
    run = _Import(chat, on_error)
    for number, line in enumerate(lines, 1):
        if isinstance(line, Unreadable) or not is_blank(line):
            run.apply(number, line)
        if on_progress:
            on_progress(0 if isinstance(line, Unreadable) else len(line))
    run.end()
    return run.summary


def _make_ready(chat: Chat) -> None:
    """Load the functions and create the tables: an import may be the first command of a system."""
    chat.system.client.require_functions(writes=True)
    chat.system.client.require_writes()
    try:
        chat.system.database.check_version()
    except ConfigurationError:
        chat.system.database.upgrade()
    with suppress(DatabaseNotReady):
        _ = chat.performer.history_database  # raises for a database that holds the data of another system


class _Import:
    """One run over the lines of all groups."""

    def __init__(self, chat: Chat, on_error: Callable[[int, str], None]) -> None:
        self.chat = chat
        self.summary = ImportSummary()
        self._on_error = on_error
        self._groups: dict[str, _GroupImport] = {}

    def apply(self, number: int, line: Line) -> None:
        """Apply the event of a line, or let it wait for the next message of its group."""
        with self.reported(number):
            if isinstance(line, Unreadable):
                raise InvalidInput(line.reason)
            event = parse(line, max_content_bytes=len(line))  # a stored message may be longer than is allowed now
            if event.gid not in self._groups:
                self._groups[event.gid] = _GroupImport(self, event.gid)
            self._groups[event.gid].apply(number, event)

    def end(self) -> None:
        """Apply the events that wait."""
        for group in self._groups.values():
            group.end()

    @contextmanager
    def reported(self, number: int) -> Iterator[None]:
        """Report the error of a line that is not valid."""
        try:
            yield
        except (InvalidInput, UnknownMessage, UnknownGroup, NotMember) as error:
            self.summary.errors += 1
            self._on_error(number, str(error))


class _GroupImport:
    """One run over the lines of one group.

    The events between two messages wait for the second one. If an earlier run has stored it, it has applied them, too.
    """

    def __init__(self, run: _Import, gid: str) -> None:
        self._run = run
        self._chat = run.chat
        self._gid = gid
        self._stored = _StoredMessages(run.chat.system, gid)
        self._is_ahead = self._stored.is_empty
        """Whether no earlier run has applied the next event: then it need not wait."""
        self._is_repeated = False
        """Whether an earlier run has stored messages of this import."""
        self._waiting: list[_NumberedEvent] = []
        self._applied_before: dict[str, _NumberedEvent] = {}
        """By uid, the last event that an earlier run has applied: a join or a leave."""
        self._members: int | None = None

    def apply(self, number: int, event: Event) -> None:
        """Apply an event, or let it wait for the next message."""
        if event.type == "message":
            self._message(event)
            return
        if event.type == "rename":
            joins = replace(event, type="join", uid=event.new_uid)
            self._waiting += [(number, replace(event, type="leave")), (number, joins)]
        else:
            self._waiting.append((number, event))
        if self._is_ahead or len(self._waiting) >= _MOST_WAITING:
            self._apply_waiting()

    def end(self) -> None:
        """Apply the events that wait. If an earlier run may have applied them, apply the final memberships only."""
        if self._is_repeated:
            last = {event.uid: i for i, (_, event) in enumerate(self._waiting) if event.type != "ack"}
            self._waiting = [(n, event) for i, (n, event) in enumerate(self._waiting) if i >= last.get(event.uid, 0)]
        self._apply_waiting()

    def _message(self, event: Event) -> None:
        if self._stored.has(event):
            if self._stored.is_first_mention(event):
                self._skip_waiting(event.uid)
            return
        check_content(event.content, self._chat.system.settings.max_content_bytes)
        self._is_ahead = True
        self._apply_waiting()
        sent = self._as_member(event.uid, lambda: self._send(event))
        self._stored.add_sent(event, sent.msgid)
        self._run.summary.messages += not sent.repeated

    def _skip_waiting(self, sender_uid: str) -> None:
        """Apply no event that waits, because an earlier run did. Note the final memberships."""
        self._is_repeated, self._is_ahead = True, False
        for number, event in self._waiting:
            with self._run.reported(number):
                if event.type == "ack":
                    self._stored.msgid(event.client_msgid)
                self._applied_before[event.uid] = (
                    number,
                    event if event.type == "leave" else replace(event, type="join"),
                )
        self._waiting.clear()
        if sender_uid in self._applied_before and self._applied_before[sender_uid][1].type == "leave":
            del self._applied_before[sender_uid]  # the sender joined again by the message

    def _apply_waiting(self) -> None:
        uids = {event.uid for _, event in self._waiting}
        final = [numbered for uid, numbered in self._applied_before.items() if uid not in uids]
        for number, event in final + self._waiting:
            with self._run.reported(number):
                self._apply_now(event)
        self._applied_before.clear()
        self._waiting.clear()

    def _apply_now(self, event: Event) -> None:
        match event.type:
            case "join":
                self._join(event.uid)
            case "leave":
                self._leave(event.uid)
            case "ack":
                msgid = self._stored.msgid(event.client_msgid)
                ack = self._as_member(event.uid, lambda: self._chat.ack(event.uid, self._gid, msgid))
                self._run.summary.acks += ack.advanced

    def _send(self, event: Event) -> SendResult:
        client, draft = self._chat.system.client, Draft(event.uid, event.content, event.client_msgid, event.sent_at_ms)
        call = message_calls.send(client.space, self._gid, [draft], self._chat.system.settings.idempotency_ms)
        return raised(client.call(call)[0])

    def _as_member(self, uid: str, action: Callable[[], T]) -> T:
        """Do something that a member may do. A user who is not a member joins first."""
        try:
            return action()
        except (UnknownGroup, NotMember):
            self._join(uid)
            return action()

    def _join(self, uid: str) -> None:
        before = self._count_members()
        self._members = self._chat.add_members(self._gid, [uid]).members
        self._run.summary.joins += self._members > before

    def _leave(self, uid: str) -> None:
        before = self._count_members()
        self._members = self._chat.remove_members(self._gid, [uid]).members
        self._run.summary.leaves += self._members < before

    def _count_members(self) -> int:
        """Return how many members the group has. Create it if it does not exist."""
        if self._members is None:
            try:
                self._members = self._chat.create_group(self._gid).members
            except GroupExists:
                self._members = self._chat.group(self._gid).members
        return self._members


class _StoredMessages:
    """The stored messages of a group, by their client_msgids.

    This run's own messages, and those in Redis, are kept in memory. Older ones are looked up in SQL: Redis knows a
    client_msgid for a day only.
    """

    def __init__(self, system: System, gid: str) -> None:
        self._client = system.client
        self._database = system.database
        self._gid = gid
        self._msgids: dict[str, str] = {}
        """By client_msgid."""
        self._is_mentioned: dict[tuple[str, str], bool] = {}
        """By sender and client_msgid, whether this run has come to the message. Stored messages only."""
        self._newest: str | None = None
        """The newest msgid that was read from Redis."""
        self._sql_was_empty = not self._database.messages_after(gid, msgids.NONE, limit=1)
        self._read_redis()
        self.is_empty = self._sql_was_empty and self._newest is None
        """Whether the group had no messages when the run came to it."""

    def has(self, event: Event) -> bool:
        """Return whether the message of an event is stored."""
        key = event.uid, event.client_msgid
        if key in self._is_mentioned or self._sql_was_empty:  # then all messages are in memory
            return key in self._is_mentioned
        if self._database.message_by_client_msgid(self._gid, event.client_msgid, sender_uid=event.uid):
            self._is_mentioned[key] = False
        return key in self._is_mentioned

    def is_first_mention(self, event: Event) -> bool:
        """Return whether this run comes to a stored message for the first time. The next call returns False."""
        key = event.uid, event.client_msgid
        is_first = not self._is_mentioned[key]
        self._is_mentioned[key] = True
        return is_first

    def add_sent(self, event: Event, msgid: str) -> None:
        """Add a message that this run has sent."""
        self._msgids.setdefault(event.client_msgid, msgid)
        self._is_mentioned[event.uid, event.client_msgid] = True

    def msgid(self, client_msgid: str) -> str:
        """Return the msgid of the message with a client_msgid. Raise UnknownMessage."""
        if client_msgid not in self._msgids:
            if row := self._database.message_by_client_msgid(self._gid, client_msgid):
                return msgids.unpack(row.msgid)
            self._read_redis()
        if client_msgid not in self._msgids:
            raise UnknownMessage(f"no message of {self._gid!r} has the client_msgid {client_msgid!r}")
        return self._msgids[client_msgid]

    def _read_redis(self) -> None:
        """Add the messages that came to Redis since the last call: SQL may not have them yet."""
        has_more = True
        while has_more:
            first = f"({self._newest}" if self._newest else "-"
            call = message_calls.entries(self._client.space, self._gid, first, "+", _ENTRIES_PER_PAGE)
            entries, has_more = self._client.call(call)
            for entry in entries:
                message = wire.message(self._gid, entry)
                self._newest = message.msgid
                if message.client_msgid:
                    self._msgids.setdefault(message.client_msgid, message.msgid)
                    self._is_mentioned.setdefault((message.sender_uid, message.client_msgid), False)
