"""Replays events of chat, such as another system's log, from JSON Lines."""

import json
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import ConfigurationError, GroupExists, InvalidInput, NotMember, UnknownGroup, UnknownMessage
from imcore.history import PAGE, raised
from imcore.limits import check_content, check_name
from imcore.streams import calls, wire
from imcore.streams.calls import Draft, Sent

T = TypeVar("T")

_NAMES = {"message": ("client_msgid",), "join": (), "leave": (), "rename": ("new_uid",), "ack": ("client_msgid",)}
"""The types of events, and the names that each needs besides gid and uid."""

_BOM = b"\xef\xbb\xbf"
"""Some editors begin a file with it."""


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
    sent_at: datetime | None = None


def import_events(
    chat: Chat,
    lines: Iterable[bytes],
    *,
    on_error: Callable[[int, str], None],
    on_progress: Callable[[int], None] | None = None,
) -> ImportSummary:
    """Replay events, one JSON object a line, in their order.

    A message that is stored already (same gid, sender and client_msgid) does nothing at all, however long ago it was.
    Otherwise the sender of a message or ack who is no member joins first, and a first event makes its group. A line
    that is not valid changes nothing: `on_error` gets its number, from 1, and the reason, and the rest goes on. Blank
    lines are passed over. `on_progress` gets the bytes of each line that is done.

    Raise ConfigurationError for a database that cannot be used, RedisUnavailable, RedisFull or DatabaseUnavailable if
    that is so: then the same import can be run again. Where others change the same groups at the same time, all of it
    holds but the count of joins and leaves.
    """
    _make_ready(chat)
    run = _Import(chat)
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                run.apply(parse(line.removeprefix(_BOM), max_content_bytes=chat.settings.max_content_bytes))
        except (InvalidInput, UnknownMessage, UnknownGroup, NotMember) as error:
            run.summary.errors += 1
            on_error(number, str(error))
        if on_progress:
            on_progress(len(line))
    return run.summary


def _make_ready(chat: Chat) -> None:
    """An import may well be the first of all: then the functions and the tables are not there, in which it looks."""
    chat.link.require_functions(writes=True)
    try:
        chat.database.check_version()
    except ConfigurationError:
        chat.database.upgrade()


def parse(line: bytes, *, max_content_bytes: int) -> Event:
    """Return the event of a line. Raise InvalidInput if it is none."""
    fields = _object(line)
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _NAMES:
        raise InvalidInput(f"type must be one of {', '.join(_NAMES)}; it is {reprlib.repr(kind)}")
    event: dict[str, Any] = {name: check_name(_text(fields, name), name) for name in ("gid", "uid", *_NAMES[kind])}
    sent_at = None
    if kind == "message":
        event["content"] = check_content(_text(fields, "content"), max_content_bytes)
        sent_at = _time(fields.get("time"))
    return Event(type=kind, sent_at=sent_at, **event)


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError:
        raise InvalidInput("the line is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(f"the line is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets without end
        raise InvalidInput(f"the line is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput("the line is not a JSON object")
    return found


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise InvalidInput(f"{name} is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a text; it is {reprlib.repr(value)}")
    return value


def _time(value: Any) -> datetime | None:
    """The sender's time in UTC, as which one without a zone is taken."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"time must be ISO 8601; it is {reprlib.repr(value)}") from None


class _Import:
    """One run: applies events, and sums up."""

    def __init__(self, chat: Chat) -> None:
        self.summary = ImportSummary()
        self._chat = chat
        self._stored = _StoredMessages(chat)
        self._members: dict[str, int] = {}

    def apply(self, event: Event) -> None:
        match event.type:
            case "message":
                self._message(event)
            case "ack":
                self._ack(event)
            case "join":
                self._join(event.gid, event.uid)
            case "leave":
                self._leave(event.gid, event.uid)
            case "rename":
                self._leave(event.gid, event.uid)
                self._join(event.gid, event.new_uid)

    def _message(self, event: Event) -> None:
        if self._stored.in_sql(event):
            return
        sent = self._as_member(event, lambda: self._send(event))
        self._stored.remember(event.gid, event.client_msgid, sent.msgid)
        self.summary.messages += not sent.repeated

    def _send(self, event: Event) -> Sent:
        sent_at_ms = None if event.sent_at is None else msgids.to_ms(event.sent_at)
        draft = Draft(event.uid, event.content, event.client_msgid, sent_at_ms)
        link = self._chat.link
        return raised(link.run(calls.send(link.space, event.gid, [draft], self._chat.settings.idempotency_ms))[0])

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


class _StoredMessages:
    """Finds stored messages by their client_msgid. What this run stored or has once looked through is remembered."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._msgids: dict[tuple[str, str], str] = {}
        self._looked_through: dict[str, str] = {}
        self._new: dict[str, bool] = {}

    def in_sql(self, event: Event) -> bool:
        """Whether SQL holds this very message: Redis knows a client_msgid for a day only."""
        if self._is_new(event.gid) and (event.gid, event.client_msgid) not in self._msgids:
            return False
        row = self._chat.database.message_by_client_msgid(event.gid, event.client_msgid, sender_uid=event.uid)
        return row is not None

    def _is_new(self, gid: str) -> bool:
        """Whether SQL had nothing of the group as the run came to it. What came since is known here or in Redis."""
        if gid not in self._new:
            self._new[gid] = not self._chat.database.messages_after(gid, msgids.NONE, limit=1)
        return self._new[gid]

    def remember(self, gid: str, client_msgid: str, msgid: str) -> None:
        self._msgids.setdefault((gid, client_msgid), msgid)

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
        row = self._chat.database.message_by_client_msgid(gid, client_msgid)
        return msgids.unpack(row.msgid) if row else None

    def _look_through(self, gid: str) -> None:
        """Remember what Redis holds of a group, from where the last look ended: SQL may not have it yet."""
        link = self._chat.link
        while True:
            after = self._looked_through.get(gid)
            first = f"({after}" if after else "-"
            page = link.run(calls.entries(link.space, gid, first, "+", PAGE))
            for message in (wire.message(gid, entry) for entry in page):
                self._looked_through[gid] = message.msgid
                if message.client_msgid:
                    self.remember(gid, message.client_msgid, message.msgid)
            if len(page) < PAGE:
                return
