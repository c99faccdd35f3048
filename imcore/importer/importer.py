"""Replays events of chat, such as another system's log, from JSON Lines."""

import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

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
from imcore.importer.formats import Line, Unreadable, is_blank, json_object
from imcore.model.limits import check_content, check_name, check_time
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.operations.queries import PAGE
from imcore.streams import wire
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import SendResult

T = TypeVar("T")

_NAMES = {"message": ("client_msgid",), "join": (), "leave": (), "rename": ("new_uid",), "ack": ("client_msgid",)}
"""The types of events, and the names that each needs besides gid and uid."""

_MOST_WAITING = 10_000

_YEAR = re.compile(r"([+-]?)0*([0-9]*)(?<=[0-9]{4})-[0-9]{2}", re.ASCII)
"""ISO 8601 has more years than a time here: with a sign, or with more than four digits."""


@dataclass(slots=True)
class ImportSummary:
    """What an import changed: messages stored, memberships begun and ended, offsets moved; and lines not valid.

    Joins count who joined by a message, an ack or a new name too. What was so already is not counted.
    """

    messages: int = 0
    joins: int = 0
    leaves: int = 0
    acks: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One valid event; what its type does not have is empty."""

    type: str
    gid: str
    uid: str
    new_uid: str = ""
    client_msgid: str = ""
    content: str = ""
    sent_at_ms: int | None = None


def import_events(
    chat: Chat,
    lines: Iterable[Line],
    *,
    on_error: Callable[[int, str], None],
    on_progress: Callable[[int], None] | None = None,
) -> ImportSummary:
    """Replay events, one JSON object a line, in their order.

    A message that is stored already (same gid, sender and client_msgid) does nothing at all, however long ago it was.
    What stands before it in its group was done before it was stored: of that, only who was a member in the end is seen
    to again. So the same import again changes nothing, unless others have changed who is a member meanwhile, and one
    that was broken off goes on where it ended. (What stands behind the last message of a group may or may not have been
    done: then, too, only who is a member in the end counts.) Otherwise the sender of a message or ack who is no member
    joins first, and a first event makes its group.

    A line that is not valid changes nothing: `on_error` gets its number, from 1, and the reason, and the rest goes on.
    Blank lines are passed over. `on_progress` gets the bytes of each line. The lines of a file in any form that people
    have are `imcore.importer.formats.EventLines`.

    Raise ConfigurationError for a database that cannot be used, RedisUnavailable, RedisFull or DatabaseUnavailable if
    that is so: then the same import can be run again. Where others change the same groups at the same time, all of it
    holds but the count of joins and leaves.
    """
    _make_ready(chat)
    run = _Import(chat, on_error)
    for number, line in enumerate(lines, 1):
        if isinstance(line, Unreadable) or not is_blank(line):
            run.take(number, line)
        if on_progress:
            on_progress(0 if isinstance(line, Unreadable) else len(line))
    run.end()
    return run.summary


def _make_ready(chat: Chat) -> None:
    """An import may well be the first of all: then the functions and the tables are not there, in which it looks."""
    chat.system.client.require_functions(writes=True)
    chat.system.client.require_writes()
    try:
        chat.system.database.check_version()
    except ConfigurationError:
        chat.system.database.upgrade()
    with suppress(DatabaseNotReady):
        _ = chat.performer.history_database  # or what is stored already would be looked for in another system's data


def parse(line: bytes, *, max_content_bytes: int) -> Event:
    """Return the event of a line. Raise InvalidInput if it is none."""
    fields = json_object(line)
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _NAMES:
        raise InvalidInput(f"type must be one of {', '.join(_NAMES)}; it is {reprlib.repr(kind)}")
    event: dict[str, Any] = {name: check_name(_text(fields, name), name) for name in ("gid", "uid", *_NAMES[kind])}
    if kind == "message":
        event["content"] = check_content(_text(fields, "content"), max_content_bytes)
        event["sent_at_ms"] = _time_ms(fields.get("time"))
    return Event(type=kind, **event)


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise InvalidInput(f"{name} is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a text; it is {reprlib.repr(value)}")
    return value


def _time_ms(value: Any) -> int | None:
    """Return the sender's time in ms since 1970. One without a zone is taken as UTC."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(_capital_zone(value))
    except (TypeError, ValueError) as error:
        raise InvalidInput(_no_time(value, str(error))) from None
    return check_time(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _capital_zone(value: Any) -> Any:
    """Return a text with the zone `Z` as Python reads it: RFC 3339 allows `z` too."""
    return f"{value[:-1]}Z" if isinstance(value, str) and value.endswith("z") else value


def _no_time(value: Any, why: str) -> str:
    shown = reprlib.repr(value)
    if isinstance(value, str) and _has_far_year(value):
        return f"the time {shown} is not between the years 1 and 9999 in UTC"
    if isinstance(value, str) and not why.startswith("Invalid isoformat"):
        return f"the time {shown} cannot be read: {why}"  # as of February 30
    return f"time must be ISO 8601; it is {shown}"


def _has_far_year(text: str) -> bool:
    """Return whether a text begins with a year before 1 or after 9999."""
    found = _YEAR.match(text)
    return found is not None and (found[1] == "-" or not 1 <= len(found[2]) <= 4)


_Numbered = tuple[int, Event]
"""An event with the number of its line."""


class _Import:
    """One run: applies events, and sums up."""

    def __init__(self, chat: Chat, on_error: Callable[[int, str], None]) -> None:
        self.summary = ImportSummary()
        self._chat = chat
        self._on_error = on_error
        self._stored = _StoredMessages(chat)
        self._members: dict[str, int] = {}
        self._waiting: dict[str, list[_Numbered]] = {}
        self._again: set[str] = set()
        """The groups of which an earlier run has stored messages of these."""
        self._passed: dict[str, dict[str, _Numbered]] = {}
        """What earlier runs have done: in each group, the last that made a user a member or ended that."""
        self._beyond: set[str] = set()
        """The groups in which this run has gone beyond what earlier ones have done: there nothing has to wait."""
        self._mentioned: set[tuple[str, str, str]] = set()

    def take(self, number: int, line: Line) -> None:
        """Apply the event of a line, or let it wait for the next message of its group."""
        with self._reported(number):
            if isinstance(line, Unreadable):
                raise InvalidInput(line.reason)
            event = parse(line, max_content_bytes=len(line))  # what is stored may be longer than is allowed now
            if event.type == "message":
                self._message(event)
            else:
                self._other(number, event)

    def end(self) -> None:
        """Apply what still waits."""
        for gid in self._passed.keys() | self._waiting.keys():
            waiting = self._waiting.pop(gid, [])
            self._go_on(gid, _outcome(waiting) if gid in self._again else waiting)

    def _other(self, number: int, event: Event) -> None:
        lines = [(number, event)]
        if event.type == "rename":
            lines = [(number, replace(event, type="leave")), (number, replace(event, type="join", uid=event.new_uid))]
        if event.gid in self._beyond or self._stored.is_empty(event.gid):
            self._apply(lines)
            return
        waiting = self._waiting.setdefault(event.gid, [])
        waiting += lines
        if len(waiting) >= _MOST_WAITING:
            self._go_on(event.gid, self._waiting.pop(event.gid))

    def _go_on(self, gid: str, waiting: Sequence[_Numbered]) -> None:
        """Apply what waits, and see to those of whom it says nothing."""
        uids = {event.uid for _, event in waiting}
        passed = self._passed.pop(gid, {})
        self._apply(line for uid, line in passed.items() if uid not in uids)
        self._apply(waiting)

    def _pass(self, event: Event) -> None:
        """Apply nothing of what waits, since an earlier run has stored this message behind it; note how it ends."""
        passed = self._passed.setdefault(event.gid, {})
        for number, each in self._waiting.pop(event.gid, ()):
            with self._reported(number):
                if each.type == "ack":
                    self._stored.msgid(each.gid, each.client_msgid)
                passed[each.uid] = (number, each if each.type == "leave" else replace(each, type="join"))
        if event.uid in passed and passed[event.uid][1].type == "leave":
            del passed[event.uid]  # by sending they have joined again

    def _apply(self, waiting: Iterable[_Numbered]) -> None:
        for number, event in waiting:
            with self._reported(number):
                if event.type == "ack":
                    self._ack(event)
                else:
                    (self._join if event.type == "join" else self._leave)(event.gid, event.uid)

    @contextmanager
    def _reported(self, number: int) -> Iterator[None]:
        try:
            yield
        except (InvalidInput, UnknownMessage, UnknownGroup, NotMember) as error:
            self.summary.errors += 1
            self._on_error(number, str(error))

    def _message(self, event: Event) -> None:
        key = event.gid, event.uid, event.client_msgid
        is_first = key not in self._mentioned
        self._mentioned.add(key)
        if self._stored.has(event):
            if is_first:  # so an earlier run has stored it, and done what stands before it
                self._pass(event)
                self._again.add(event.gid)
                self._beyond.discard(event.gid)
            return
        check_content(event.content, self._chat.system.settings.max_content_bytes)
        self._beyond.add(event.gid)
        self._go_on(event.gid, self._waiting.pop(event.gid, ()))
        sent = self._as_member(event, lambda: self._send(event))
        self._stored.remember(event.gid, event.uid, event.client_msgid, sent.msgid)
        self.summary.messages += not sent.repeated

    def _send(self, event: Event) -> SendResult:
        draft = Draft(event.uid, event.content, event.client_msgid, event.sent_at_ms)
        client = self._chat.system.client
        return raised(
            client.call(
                message_calls.send(client.space, event.gid, [draft], self._chat.system.settings.idempotency_ms)
            )[0]
        )

    def _ack(self, event: Event) -> None:
        msgid = self._stored.msgid(event.gid, event.client_msgid)
        ack = self._as_member(event, lambda: self._chat.ack(event.uid, event.gid, msgid))
        self.summary.acks += ack.advanced

    def _as_member(self, event: Event, step: Callable[[], T]) -> T:
        """Take a step; if the user is no member for it, after they have joined."""
        try:
            return step()
        except (UnknownGroup, NotMember):
            self._join(event.gid, event.uid)
            return step()

    def _join(self, gid: str, uid: str) -> None:
        before = self._members_of(gid)
        self._members[gid] = self._chat.add_members(gid, [uid]).members
        self.summary.joins += self._members[gid] > before

    def _leave(self, gid: str, uid: str) -> None:
        before = self._members_of(gid)
        self._members[gid] = self._chat.remove_members(gid, [uid]).members
        self.summary.leaves += self._members[gid] < before

    def _members_of(self, gid: str) -> int:
        """How many members the group has, which is made if it is not there yet."""
        if gid not in self._members:
            try:
                self._members[gid] = self._chat.create_group(gid).members
            except GroupExists:
                self._members[gid] = self._chat.group(gid).members
        return self._members[gid]


def _outcome(waiting: Sequence[_Numbered]) -> list[_Numbered]:
    """Return what is left of events if of each user only the last coming or going counts, and what they acked since."""
    last = {event.uid: at for at, (_, event) in enumerate(waiting) if event.type != "ack"}
    return [line for at, line in enumerate(waiting) if at >= last.get(line[1].uid, 0)]


class _StoredMessages:
    """Finds stored messages by their client_msgid. What this run stored or has once looked through is remembered."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._msgids: dict[tuple[str, str], str] = {}
        self._senders: set[tuple[str, str, str]] = set()
        self._looked_through: dict[str, str] = {}
        self._new: dict[str, bool] = {}
        self._empty: dict[str, bool] = {}

    def has(self, event: Event) -> bool:
        """Whether this very message is stored: Redis knows a client_msgid for a day only."""
        is_new = self._is_new(event.gid)
        if (event.gid, event.client_msgid, event.uid) in self._senders:
            return True
        if is_new and (event.gid, event.client_msgid) not in self._msgids:
            return False
        row = self._chat.system.database.message_by_client_msgid(event.gid, event.client_msgid, sender_uid=event.uid)
        return row is not None

    def is_empty(self, gid: str) -> bool:
        """Whether the group had no messages as the run came to it."""
        self._is_new(gid)
        return self._empty[gid]

    def _is_new(self, gid: str) -> bool:
        """Whether SQL had nothing of the group as the run came to it. What came since is known here or in Redis."""
        if gid not in self._new:
            self._new[gid] = not self._chat.system.database.messages_after(gid, msgids.NONE, limit=1)
            self._look_through(gid)
            self._empty[gid] = self._new[gid] and gid not in self._looked_through
        return self._new[gid]

    def remember(self, gid: str, sender_uid: str, client_msgid: str, msgid: str) -> None:
        """Note a message."""
        self._msgids.setdefault((gid, client_msgid), msgid)
        self._senders.add((gid, client_msgid, sender_uid))

    def msgid(self, gid: str, client_msgid: str) -> str:
        """The msgid of the message that carries a client_msgid. Raise UnknownMessage."""
        found = self._msgids.get((gid, client_msgid)) or self._from_sql(gid, client_msgid)
        if found is None:
            self._look_through(gid)
            found = self._msgids.get((gid, client_msgid))
        if found is None:
            raise UnknownMessage(f"no message of {gid!r} has the client_msgid {client_msgid!r}")
        return found

    def _from_sql(self, gid: str, client_msgid: str) -> str | None:
        row = self._chat.system.database.message_by_client_msgid(gid, client_msgid)
        return msgids.unpack(row.msgid) if row else None

    def _look_through(self, gid: str) -> None:
        """Remember what Redis holds of a group, from where the last look ended: SQL may not have it yet."""
        client = self._chat.system.client
        while True:
            after = self._looked_through.get(gid)
            first = f"({after}" if after else "-"
            page, more = client.call(message_calls.entries(client.space, gid, first, "+", PAGE))
            for message in (wire.message(gid, entry) for entry in page):
                self._looked_through[gid] = message.msgid
                if message.client_msgid:
                    self.remember(gid, message.sender_uid, message.client_msgid, message.msgid)
            if not more:
                return
