"""History: pages of what a member may see. Redis first, and SQL for what Redis has trimmed, as if one.

A page grows on both sides of one position until it is full. Each call of Redis answers of one moment: what it has, and
up to which message it is trimmed. So SQL, which has all messages up to there, joins without a hole.
"""

from itertools import takewhile
from typing import Self

from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.model.limits import check_count, check_msgid, check_name
from imcore.model.values import HistoryPage, Message
from imcore.operations import queries
from imcore.operations.effects import Effects, GetKeyspace, call
from imcore.operations.queries import MessagesAround, MessagesAroundForeign, Sides
from imcore.streams.calls import history_calls
from imcore.streams.calls.history_calls import HistoryPart, UnreadPosition, Wanted
from imcore.streams.keys import Keyspace

MOST = 500
"""The most messages of a page."""


def history(
    uid: str,
    gid: str,
    *,
    before: str | None,
    after: str | None,
    around: str | None,
    first_unread: bool,
    limit: int,
) -> Effects[HistoryPage]:
    check_name(uid, "uid")
    check_name(gid, "gid")
    check_count(limit, "a limit of")
    if limit > MOST:
        raise InvalidInput(f"a limit of {limit} is too high: {MOST} is the highest")
    if sum((before is not None, after is not None, around is not None, bool(first_unread))) > 1:
        raise InvalidInput("before, after, around and first_unread exclude each other: give one of them")
    space = yield from GetKeyspace()
    if first_unread:
        return (yield from _around_unread(space, uid, gid, limit))
    if around is not None:
        page = _Page.around(space, uid, gid, check_msgid(around), limit)
    elif after is not None:
        cursor = check_msgid(after)
        page = _Page(space, uid, gid, Wanted(cursor + 1, 0, cursor + 1, limit), cursor)
    else:
        page = _Page.before(space, uid, gid, msgids.IMPOSSIBLE if before is None else check_msgid(before), limit)
    return (yield from page.fill())


def around_offset(uid: str, gid: str, limit: int) -> Effects[HistoryPage]:
    """Return the page that `first_unread` would give if the user had no bookmark."""
    space = yield from GetKeyspace()
    return (yield from _around_unread(space, uid, gid, limit, for_others=True))


def _around_unread(
    space: Keyspace, uid: str, gid: str, limit: int, *, for_others: bool = False
) -> Effects[HistoryPage]:
    position = yield from call(history_calls.first_unread(space, gid, uid, for_others=for_others))
    page = _Page.around(space, uid, gid, position.msgid or msgids.IMPOSSIBLE, limit)
    is_begun = yield from page.begin_with_trimmed_unread(position)
    if not is_begun and position.msgid is None:
        page = _Page.before(space, uid, gid, msgids.IMPOSSIBLE, limit)
    return (yield from page.fill())


class _Page:
    """A page that grows on both sides of a position. `cursor` is where an empty page is (packed)."""

    def __init__(self, space: Keyspace, uid: str, gid: str, wanted: Wanted, cursor: int) -> None:
        self._space = space
        self._uid = uid
        self._gid = gid
        self._wanted = wanted
        self._cursor = cursor
        self._messages: list[Message] = []
        self._has_older: bool | None = None

    @classmethod
    def around(cls, space: Keyspace, uid: str, gid: str, middle: int, limit: int) -> Self:
        return cls(space, uid, gid, Wanted(middle, limit // 2, middle, limit - limit // 2), middle)

    @classmethod
    def before(cls, space: Keyspace, uid: str, gid: str, cursor: int, limit: int) -> Self:
        return cls(space, uid, gid, Wanted(cursor, limit, cursor, 0), cursor)

    def begin_with_trimmed_unread(self, position: UnreadPosition) -> Effects[bool]:
        """Begin around the first unread message if only SQL has it; return whether that is so."""
        offset, (_, older, _, newer) = position.read, self._wanted
        while offset < position.trimmed:
            sides = yield from MessagesAroundForeign(
                self._gid, position.joined, position.trimmed, self._uid, offset, older + 1, newer
            )
            before, after = yield from self._messages_of(sides)
            read = list(takewhile(self._is_never_unread, after))
            if after and not read:
                self._add_trimmed(before, after, sees_older=True, trimmed=position.trimmed)
                return True
            offset = msgids.position_of(read[-1].msgid) if read else position.trimmed
        return False

    def _is_never_unread(self, message: Message) -> bool:
        return message.sender_uid == self._uid or message.recalled or message.recalls is not None

    def fill(self) -> Effects[HistoryPage]:
        part = yield from self._grow()
        while part.kept_back or (self._wanted.newer and self._wanted.high <= part.last):
            part = yield from self._grow()
        if self._messages:
            newest = msgids.position_of(self._messages[-1].msgid)
        else:
            newest = max(self._cursor, part.joined)
            if self._cursor < self._wanted.low:  # the message at the cursor itself is not older than an empty page
                self._wanted, self._has_older = Wanted(self._cursor, 0, self._cursor, 0), None
                part = yield from self._grow()
        return HistoryPage(tuple(self._messages), bool(self._has_older), newest < part.last)

    def _grow(self) -> Effects[HistoryPart]:
        """Add what one call of Redis has, and what only SQL has beside that."""
        high = self._wanted.high
        part = yield from call(
            history_calls.history(self._space, self._gid, self._uid, self._wanted, most_bytes=queries.PAGE_BYTES)
        )
        self._add(part.older, part.newer)
        if self._has_older is None and not part.kept_back:
            self._has_older = self._has_older_in_redis(part)
        yield from self._query_trimmed(part)
        if high > part.trimmed and not (part.older or part.newer):
            self._wanted = self._wanted._replace(newer=0)  # Redis has lost what it counts: a repair brings it back
        return part

    def _has_older_in_redis(self, part: HistoryPart) -> bool | None:
        """Return whether the member may see older messages than these; None if only SQL knows."""
        if part.has_more or part.joined >= part.trimmed:
            return part.has_more
        return True if not self._wanted.older and part.trimmed < self._wanted.low else None

    def _query_trimmed(self, part: HistoryPart) -> Effects[None]:
        """Add what only SQL has. One older message more than is wanted shows whether there are any."""
        low, older, high, newer = self._wanted
        older = older + 1 if self._has_older is None and not part.kept_back else 0
        newer = newer if high <= part.trimmed else 0
        if older or newer:
            sides = yield from MessagesAround(self._gid, part.joined, part.trimmed, low, older, high, newer)
            before, after = yield from self._messages_of(sides)
            self._add_trimmed(before, after, sees_older=older > 0, trimmed=part.trimmed)

    def _messages_of(self, sides: Sides) -> Effects[tuple[list[Message], list[Message]]]:
        before, after = sides
        messages = yield from queries.messages(self._space, self._gid, [*before, *after])
        return messages[: len(before)], messages[len(before) :]

    def _add_trimmed(self, before: list[Message], after: list[Message], *, sees_older: bool, trimmed: int) -> None:
        if sees_older:
            self._has_older = len(before) > self._wanted.older
            before = before[1:] if self._has_older else before
        self._add(before, after)
        if self._wanted.newer:
            self._wanted = self._wanted._replace(high=max(self._wanted.high, trimmed + 1))

    def _add(self, older: list[Message], newer: list[Message]) -> None:
        self._messages = [*older, *self._messages, *newer]
        low, older_left, high, newer_left = self._wanted
        self._wanted = Wanted(
            msgids.position_of(older[0].msgid) if older else low,
            older_left - len(older),
            msgids.position_of(newer[-1].msgid) + 1 if newer else high,
            newer_left - len(newer),
        )
