"""Replays events of chat, for instance another system's log, from JSON Lines.

The stored messages say what earlier runs did: they applied the events before a stored message of its group. A
checkpoint beside the data would promise less. It cannot be written in one step with an event, because groups lie in
different partitions. It is ahead of the data if Redis has lost its last second. It does not know a file in which one
line was corrected, nor another file with the same messages, nor what others have done to the members since.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    InvalidInput,
    NotMember,
    UnknownGroup,
    UnknownMessage,
)
from imcore.importer.event import Event, parse
from imcore.importer.formats import Line, Unreadable, is_blank
from imcore.importer.members import GroupMembers
from imcore.importer.stored_messages import StoredMessages
from imcore.model.limits import check_content
from imcore.model.meta import check_meta
from imcore.model.values import Draft
from imcore.operations import positions
from imcore.operations.effects import raised
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import DeliveryTarget, SendResult

T = TypeVar("T")

_MOST_WAITING = 10_000

_NumberedEvent = tuple[int, Event]

_FOR_MEMBERS = {"delivered", "mark", "recall"}
"""Types of events that make nobody a member."""


@dataclass(slots=True)
class ImportSummary:
    """The changes of an import, and the number of lines not valid. Joins include those by a message, ack or rename."""

    messages: int = 0
    joins: int = 0
    leaves: int = 0
    acks: int = 0
    delivered: int = 0
    marks: int = 0
    recalls: int = 0
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

    The events between two messages wait: if an earlier run has stored the second one, it has applied them, too. The
    recall of a message that this run has come to counts as a message: its tombstone is stored.
    """

    def __init__(self, run: _Import, gid: str) -> None:
        self._run = run
        self._chat = run.chat
        self._gid = gid
        self._stored = StoredMessages(run.chat.system, gid)
        self._is_ahead = self._stored.is_empty
        """Whether no earlier run has applied the next event: then it need not wait."""
        self._is_repeated = False
        """Whether an earlier run has stored messages of this import."""
        self._waiting: list[_NumberedEvent] = []
        self._memberships: dict[str, tuple[int, bool]] = {}
        """By uid, whether the user was a member after the events that an earlier run applied, as which line says."""
        self._members = GroupMembers(run.chat, gid)
        self._policy: _NumberedEvent | None = None
        """The last event that says who is told about readers: set at the end, as the group may not exist before."""
        self._apply_to_message: Mapping[str, Callable[[Event], None]] = {
            "ack": self._ack,
            "delivered": self._delivered,
            "mark": self._mark,
            "recall": self._recall,
        }
        """By type: applies an event that names a message."""

    def apply(self, number: int, event: Event) -> None:
        if event.type == "message":
            self._message(event)
        elif event.type == "recall" and self._stored.has_come_to(event):
            self._recall_in_order(event)
        elif event.type == "group":
            self._members.create()
            if event.receipts or event.asked_by:
                self._policy = number, event
        else:
            self._wait(number, event)

    def _wait(self, number: int, event: Event) -> None:
        self._waiting.append((number, event))
        if event.type == "rename":
            self._waiting[-1] = number, replace(event, type="leave")
            self._waiting.append((number, replace(event, type="join", uid=event.new_uid)))
        if self._is_ahead or len(self._waiting) >= _MOST_WAITING:
            self._apply_waiting()

    def end(self) -> None:
        """Apply the events that wait, and the policy.

        If an earlier run may have applied these events, apply the final memberships and acks.
        """
        if self._is_repeated:
            named = self._skip_waiting()
            self._waiting = [(number, event) for number, event in named if self._may_apply_again(event)]
        self._apply_waiting()
        if self._policy:
            number, event = self._policy
            with self._run.reported(number):
                self._chat.set_group(self._gid, receipts=event.receipts, asked_by=event.asked_by)

    def _may_apply_again(self, event: Event) -> bool:
        """Return whether an event that names a message changes no final membership."""
        return event.type == "recall" or self._memberships.get(event.uid, (0, True))[1]

    def _message(self, event: Event) -> None:
        if msgid := self._stored.find(event.uid, event.client_msgid):
            if self._come_to(msgid) and event.uid in self._memberships and not self._memberships[event.uid][1]:
                del self._memberships[event.uid]  # the sender joined again by the message
            return
        if event.content:  # else its recall follows
            check_content(event.content, self._chat.system.settings.max_content_bytes)
        check_meta(event.meta, self._chat.system.settings.max_meta_bytes)
        self._is_ahead = True
        self._apply_waiting()
        sent = self._as_member(event.uid, lambda: self._send(event))
        self._stored.add(event.uid, event.client_msgid, sent.msgid)
        self._stored.mentioned.add(sent.msgid)
        self._run.summary.messages += not sent.repeated

    def _recall_in_order(self, event: Event) -> None:
        """Recall a message that this run has come to. If that is done, so are the events before it."""
        msgid = self._stored.named(event)
        if tombstone := self._stored.tombstone(msgid):
            self._come_to(tombstone)
            return
        self._is_ahead = True
        self._apply_waiting()
        self._recall(event)

    def _come_to(self, msgid: str) -> bool:
        """Skip the events that wait if an earlier run has stored a message after them. Return False if this run did."""
        if msgid in self._stored.mentioned:
            return False
        self._is_repeated, self._is_ahead = True, False
        self._skip_waiting(before=msgid)
        self._stored.mentioned.add(msgid)
        return True

    def _skip_waiting(self, before: str | None = None) -> list[_NumberedEvent]:
        """Note the memberships after the events that wait, instead of applying them.

        Return the valid ones that name a message. `before`: the message that an earlier run has stored after them.
        """
        named = []
        for number, event in self._waiting:
            with self._run.reported(number):
                if event.type in self._apply_to_message:
                    self._stored.named(event, before=before)
                    named.append((number, event))
                if event.type not in _FOR_MEMBERS:
                    self._memberships[event.uid] = number, event.type != "leave"
        self._waiting.clear()
        return named

    def _apply_waiting(self) -> None:
        """Apply the noted memberships of users for whom no event waits, then the events that wait."""
        for _, event in self._waiting:
            if event.type not in _FOR_MEMBERS:
                self._memberships.pop(event.uid, None)
        for uid, (number, is_member) in self._memberships.items():
            with self._run.reported(number):
                self._set_member(uid, is_member)
        for number, event in self._waiting:
            with self._run.reported(number):
                if apply := self._apply_to_message.get(event.type):
                    apply(event)
                else:
                    self._set_member(event.uid, event.type == "join")
        self._memberships.clear()
        self._waiting.clear()

    def _recall(self, event: Event) -> None:
        """Recall a message. Whoever recalls it need not be a member, and does not become one."""
        msgid = self._stored.named(event)
        recalled = self._chat.recall(self._gid, msgid, by=event.uid, admin=True)
        if recalled.recalls is not None:
            self._stored.add_tombstone(msgid, recalled.msgid)
            self._stored.mentioned.add(recalled.msgid)
            self._run.summary.recalls += 1

    def _ack(self, event: Event) -> None:
        msgid = self._stored.named(event)
        ack = self._as_member(event.uid, lambda: self._chat.ack(event.uid, self._gid, msgid, private=event.private))
        self._run.summary.acks += ack.advanced

    def _delivered(self, event: Event) -> None:
        """Note that all up to a message has arrived, as an ack confirms all up to it."""
        target = DeliveryTarget(msgids.pack(self._stored.named(event)), [event.uid])
        [result] = self._chat.performer.perform(positions.confirm_delivered(self._gid, [target]))
        self._run.summary.delivered += raised(raised(result).of(event.uid)).advanced

    def _mark(self, event: Event) -> None:
        self._chat.mark_unread(event.uid, self._gid, self._stored.named(event))
        self._run.summary.marks += 1

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
        change = self._members.set(uid, is_member)
        self._run.summary.joins += max(change, 0)
        self._run.summary.leaves += max(-change, 0)
