"""Replays events of chat, for instance another system's log, from JSON Lines.

The stored messages say what earlier runs did: they applied the events before a stored message of its group. A
checkpoint beside the data would promise less. It cannot be written in one step with an event, because groups lie in
different partitions. It is ahead of the data if Redis has lost its last second. It does not know a file in which one
line was corrected, nor another file with the same messages, nor what others have done to the members since.
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
from imcore.model.meta import check_meta
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.repair import window
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import SendResult
from imcore.system import System

T = TypeVar("T")

_MOST_WAITING = 10_000

_NumberedEvent = tuple[int, Event]


@dataclass(slots=True)
class ImportSummary:
    """The changes of an import, and the number of lines not valid. Joins include those by a message, ack or rename."""

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
    before it in its group were applied before it was stored: of these, and of those after the last message of a
    group, only the final memberships (and acks) are applied again. So the same import again changes nothing, unless
    others have changed the members meanwhile, and an interrupted import continues where it ended. Otherwise the
    sender of a message or ack who is not a member joins first, and the first event of a group creates it.

    A line that is not valid changes nothing: `on_error` gets its number, from 1, and the reason. Blank lines are
    ignored. `on_progress` gets the bytes of each line. `imcore.importer.formats.EventLines` reads the lines of a
    file. Raise ConfigurationError for a database that cannot be used, RedisUnavailable, RedisFull or
    DatabaseUnavailable; afterwards the same import can be run again.
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
        with self.reported(number):
            if isinstance(line, Unreadable):
                raise InvalidInput(line.reason)
            event = parse(line, max_content_bytes=len(line))  # a stored message may be longer than is allowed now
            if event.gid not in self._groups:
                self._groups[event.gid] = _GroupImport(self, event.gid)
            self._groups[event.gid].apply(number, event)

    def end(self) -> None:
        for group in self._groups.values():
            group.end()

    @contextmanager
    def reported(self, number: int) -> Iterator[None]:
        try:
            yield
        except (InvalidInput, UnknownMessage, UnknownGroup, NotMember) as error:
            self.summary.errors += 1
            self._on_error(number, str(error))


class _GroupImport:
    """One run over the lines of one group.

    The events between two messages wait: if an earlier run has stored the second one, it has applied them, too.
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
        self._memberships: dict[str, tuple[int, bool]] = {}
        """By uid, whether the user was a member after the events that an earlier run applied, as which line says."""
        self._members: int | None = None

    def apply(self, number: int, event: Event) -> None:
        if event.type == "message":
            self._message(event)
            return
        self._waiting.append((number, event))
        if event.type == "rename":
            self._waiting[-1] = number, replace(event, type="leave")
            self._waiting.append((number, replace(event, type="join", uid=event.new_uid)))
        if self._is_ahead or len(self._waiting) >= _MOST_WAITING:
            self._apply_waiting()

    def end(self) -> None:
        """Apply the events that wait. If an earlier run may have applied them, apply the final memberships and acks."""
        if self._is_repeated:
            acks = self._skip_waiting()
            self._waiting = [(number, ack) for number, ack in acks if self._memberships[ack.uid][1]]
        self._apply_waiting()

    def _message(self, event: Event) -> None:
        if msgid := self._stored.find(event.uid, event.client_msgid):
            if msgid not in self._stored.mentioned:
                self._is_repeated, self._is_ahead = True, False
                self._skip_waiting(before=msgid)
                self._stored.mentioned.add(msgid)
                if event.uid in self._memberships and not self._memberships[event.uid][1]:
                    del self._memberships[event.uid]  # the sender joined again by the message
            return
        check_content(event.content, self._chat.system.settings.max_content_bytes)
        check_meta(event.meta, self._chat.system.settings.max_meta_bytes)
        self._is_ahead = True
        self._apply_waiting()
        sent = self._as_member(event.uid, lambda: self._send(event))
        self._stored.add(event.uid, event.client_msgid, sent.msgid)
        self._stored.mentioned.add(sent.msgid)
        self._run.summary.messages += not sent.repeated

    def _skip_waiting(self, before: str | None = None) -> list[_NumberedEvent]:
        """Note the memberships after the events that wait, instead of applying them. Return the acks that are valid.

        `before`: the message that an earlier run has stored after these events.
        """
        acks = []
        for number, event in self._waiting:
            with self._run.reported(number):
                if event.type == "ack":
                    self._stored.msgid(event.client_msgid, before=before)
                    acks.append((number, event))
                self._memberships[event.uid] = number, event.type != "leave"
        self._waiting.clear()
        return acks

    def _apply_waiting(self) -> None:
        """Apply the noted memberships of users for whom no event waits, then the events that wait."""
        for _, event in self._waiting:
            self._memberships.pop(event.uid, None)
        for uid, (number, is_member) in self._memberships.items():
            with self._run.reported(number):
                self._set_member(uid, is_member)
        for number, event in self._waiting:
            with self._run.reported(number):
                if event.type == "ack":
                    self._ack(event)
                else:
                    self._set_member(event.uid, event.type == "join")
        self._memberships.clear()
        self._waiting.clear()

    def _ack(self, event: Event) -> None:
        msgid = self._stored.msgid(event.client_msgid)
        ack = self._as_member(event.uid, lambda: self._chat.ack(event.uid, self._gid, msgid))
        self._run.summary.acks += ack.advanced

    def _send(self, event: Event) -> SendResult:
        client = self._chat.system.client
        draft = Draft(event.uid, event.content, event.client_msgid, event.sent_at_ms, event.meta)
        call = message_calls.send(client.space, self._gid, [draft], self._chat.system.settings.idempotency_ms)
        return raised(client.call(call)[0])

    def _as_member(self, uid: str, action: Callable[[], T]) -> T:
        """Do something that a member may do. A user who is not a member joins first."""
        try:
            return action()
        except (UnknownGroup, NotMember):
            self._set_member(uid, True)
            return action()

    def _set_member(self, uid: str, is_member: bool) -> None:
        """Let a user join or leave the group. Create it if it does not exist."""
        if self._members is None:
            try:
                self._members = self._chat.create_group(self._gid).members
            except GroupExists:
                self._members = self._chat.group(self._gid).members
        change = self._chat.add_members if is_member else self._chat.remove_members
        before, self._members = self._members, change(self._gid, [uid]).members
        self._run.summary.joins += self._members > before
        self._run.summary.leaves += self._members < before


class _StoredMessages:
    """The stored messages of a group, by their client_msgids. Those of this run and of Redis are kept in memory.

    Older ones are looked up in SQL: Redis knows a client_msgid for a day only.
    """

    def __init__(self, system: System, gid: str) -> None:
        self._client = system.client
        self._database = system.database
        self._gid = gid
        self._msgids: dict[str, str] = {}
        self._msgids_of_senders: dict[tuple[str, str], str] = {}
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

    def msgid(self, client_msgid: str, *, before: str | None = None) -> str:
        """Return the msgid for a client_msgid: stored before `before`, or come to by this run. Raise UnknownMessage."""
        if client_msgid not in self._msgids:
            if row := self._database.message_by_client_msgid(self._gid, client_msgid):
                self._msgids[client_msgid] = msgids.unpack(row.msgid)
            else:
                self._read_redis()
        msgid = self._msgids.get(client_msgid)
        if msgid and (not before or msgid in self.mentioned or msgids.pack(msgid) < msgids.pack(before)):
            return msgid
        raise UnknownMessage(f"no message of {self._gid!r} has the client_msgid {client_msgid!r}")

    def _read_redis(self) -> None:
        """Add the messages that came to Redis since the last call: SQL may not have them yet."""
        start = f"({self._newest}" if self._newest else "-"
        for row, _ in window.live(self._client, self._gid, first=start):
            self._newest = msgids.unpack(row.msgid)
            if row.client_msgid:
                self.add(row.sender_uid, row.client_msgid, self._newest)
