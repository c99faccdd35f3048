"""The inbox: a user's groups by their latest message, with what is unread. It is computed when it is asked for.

A first look at all groups, in a short form, says their order and the totals. Then the groups of the page are asked in
the long form. Redis answers first; SQL is asked for what Redis has trimmed, for many groups at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.model.limits import check_count, check_handed_over, check_name, check_resume_point
from imcore.model.rows import MessageRow
from imcore.model.values import InboxEntry, InboxPage, Message
from imcore.operations import queries
from imcore.operations.effects import Effects, GetKeyspace, SqlQuery, call_many
from imcore.operations.positions import SeqsAt, parts_of, unread_counts
from imcore.streams import wire
from imcore.streams.calls import inbox_calls, message_calls
from imcore.streams.calls.inbox_calls import InboxPlace, Shown
from imcore.streams.keys import Keyspace

if TYPE_CHECKING:
    from imcore.sql.database import Database

MOST = 500
"""The most groups of a page."""

GROUPS_PER_CALL = 100
"""One call in the short form takes the server about a millisecond."""
DETAILS_PER_CALL = 10


@dataclass(frozen=True, slots=True)
class MessagesAt(SqlQuery[list[MessageRow]]):
    """Those of some messages, each a gid and a msgid, that exist."""

    places: Sequence[tuple[str, int]]

    def run(self, database: "Database") -> list[MessageRow]:
        return database.history.messages_at(self.places)


@dataclass(frozen=True, slots=True)
class FirstsOfOthers(SqlQuery[dict[str, int]]):
    """The first message that counts as unread for a user, of each group (gid, after, until)."""

    uid: str
    between: Sequence[tuple[str, int, int]]

    def run(self, database: "Database") -> dict[str, int]:
        return database.history.firsts_of_others(self.uid, self.between)


class Rank(NamedTuple):
    """The rank of a group in the inbox, which sorts as the inbox does: `newest` is a packed msgid, negative."""

    newest: int
    gid: str

    @classmethod
    def of(cls, gid: str, newest: int) -> "Rank":
        return cls(-newest, gid)

    def __str__(self) -> str:
        return f"{msgids.unpack(-self.newest)}:{self.gid}"


def inbox(uid: str, *, limit: int, after: str | None, unread_only: bool) -> Effects[InboxPage]:
    check_name(uid, "uid")
    if check_count(limit, "a limit of") > MOST:
        raise InvalidInput(f"a limit of {limit} is too high: {MOST} is the highest")
    start = _rank_of(after)
    space = yield from GetKeyspace()
    gids, silent = yield from queries.groups_that_answer(space, uid)
    places = yield from _places(space, uid, gids)
    unread = yield from _counts(places)
    ranks = yield from _page(space, _with_unread(places, unread) if unread_only else places, start, limit)
    entries = yield from _entries(space, uid, [rank.gid for rank in ranks[:limit]])
    unread |= {entry.gid: entry.unread for entry in entries}
    return InboxPage(
        entries=tuple(entry for entry in entries if entry.unread or not unread_only),
        groups=len(unread),
        unread_groups=sum(map(bool, unread.values())),
        unread=sum(unread.values()),
        next=None if len(ranks) <= limit else str(ranks[limit - 1]),
        silent=silent,
    )


def _with_unread(places: Mapping[str, InboxPlace], unread: Mapping[str, int]) -> dict[str, InboxPlace]:
    return {gid: place for gid, place in places.items() if unread[gid]}


def _rank_of(cursor: str | None) -> Rank | None:
    """Return the rank that a cursor names. Raise InvalidInput."""
    if cursor is None:
        return None
    msgid, is_cursor, gid = check_handed_over(cursor, "a cursor").partition(":")
    if not is_cursor:
        raise InvalidInput(f"{cursor!r} is not a cursor: give what `next` of a page says")
    _, packed = check_resume_point(gid, msgid)
    return Rank.of(gid, packed)


def _places(space: Keyspace, uid: str, gids: Sequence[str]) -> Effects[dict[str, InboxPlace]]:
    """Return the place of each group in Redis; a group that was left meanwhile has none."""
    parts = parts_of(space, gids, GROUPS_PER_CALL)
    answers = yield from call_many([inbox_calls.order(space, part, uid) for part in parts])
    return {
        gid: place
        for part, answer in zip(parts, answers, strict=True)
        for gid, place in zip(part, answer, strict=True)
        if place
    }


def _counts(places: Mapping[str, InboxPlace]) -> Effects[dict[str, int]]:
    """Return how many messages are unread in each group."""
    counts = {gid: place.unread for gid, place in places.items() if place.unread is not None}
    unknown = [(gid, place.unread_after) for gid, place in places.items() if place.unread is None]
    seqs = (yield from SeqsAt(unknown)) if unknown else {}
    return counts | {gid: places[gid].counted - seqs.get(gid, 0) for gid, _ in unknown}


def _page(space: Keyspace, places: Mapping[str, InboxPlace], start: Rank | None, limit: int) -> Effects[list[Rank]]:
    """Return the ranks of the next groups, one more than `limit` if there are as many.

    If only SQL knows the newest message of a group, it is up to the trim point. SQL is asked once that rank is next.
    """
    heap = [
        (Rank.of(gid, place.trimmed if place.newest is None else place.newest), place.newest is not None)
        for gid, place in places.items()
    ]
    heapify(heap)
    page: list[Rank] = []
    while heap and len(page) <= limit:
        rank, is_known = heappop(heap)
        if is_known and (start is None or rank > start):
            page.append(rank)
        elif not is_known:
            place = places[rank.gid]
            message = yield from _newest_in_sql(space, rank.gid, place.joined, place.trimmed)
            heappush(heap, (Rank.of(rank.gid, _packed(message)), True))
    return page


def _packed(message: Message | None) -> int:
    return msgids.pack(message.msgid) if message else 0


def _newest_in_sql(space: Keyspace, gid: str, joined: int, trimmed: int) -> Effects[Message | None]:
    """Return the newest message since the join, up to the trim point, that is neither recalled nor a tombstone."""
    before = trimmed + 1
    while True:
        stored = yield from queries.MessagesBefore(gid, before, queries.SQL_PAGE)
        rows = [row for row in stored if row.msgid > joined]
        if not rows:
            return None
        for message in reversed((yield from queries.messages(space, gid, rows))):
            if not message.recalled and message.recalls is None:
                return message
        before = rows[0].msgid


def _shown(space: Keyspace, uid: str, gids: Sequence[str]) -> Effects[dict[str, Shown]]:
    """Return what Redis shows of each group; a group that was left meanwhile is left out."""
    shown: dict[str, Shown] = {}
    parts = parts_of(space, gids, DETAILS_PER_CALL)
    while parts:
        calls = [inbox_calls.inbox(space, part, uid, most_bytes=queries.PAGE_BYTES) for part in parts]
        answers = yield from call_many(calls)
        for part, answer in zip(parts, answers, strict=True):
            shown.update((gid, each) for gid, each in zip(part, answer, strict=False) if each)
        parts = [part[len(answer) :] for part, answer in zip(parts, answers, strict=True) if len(answer) < len(part)]
    return shown


def _entries(space: Keyspace, uid: str, gids: Sequence[str]) -> Effects[list[InboxEntry]]:
    """Return what is shown of groups, in order; some may have got a message since they were found."""
    shown = yield from _shown(space, uid, gids)
    unread = yield from unread_counts({gid: each.position for gid, each in shown.items()})
    messages = yield from _messages(space, shown)
    first_unread = yield from _first_unread(space, uid, {gid: each for gid, each in shown.items() if unread[gid]})
    entries: list[tuple[Rank, InboxEntry]] = []
    for gid, each in shown.items():
        message, first = messages.get(gid), msgids.unpack_offset(first_unread.get(gid, 0))
        entry = InboxEntry(gid, unread[gid], each.position.mark > 0, first, message)
        entries.append((Rank.of(gid, _packed(message)), entry))
    return [entry for _, entry in sorted(entries)]


def _messages(space: Keyspace, shown: Mapping[str, Shown]) -> Effects[dict[str, Message]]:
    """Return the newest message of each group that has one."""
    messages: dict[str, Message] = {}
    places: list[tuple[str, int]] = []
    for gid, each in shown.items():
        message = each.message
        if each.newest is None:
            message = yield from _newest_in_sql(space, gid, each.position.joined, each.trimmed)
        elif each.newest and not message:
            places.append((gid, each.newest))
        if message:
            messages[gid] = message
    rows = (yield from MessagesAt(places)) if places else []
    return messages | {row.gid: wire.message_of_row(row) for row in rows}


def _first_unread(space: Keyspace, uid: str, shown: Mapping[str, Shown]) -> Effects[dict[str, int]]:
    """Return the first unread message (packed) of each group."""
    found = {gid: each.first_unread for gid, each in shown.items() if each.first_unread}
    between = {gid: (each.position.unread_after, each.trimmed) for gid, each in shown.items()}
    waiting = [(gid, after, trimmed) for gid, (after, trimmed) in between.items() if after < trimmed]
    while waiting:
        firsts = yield from FirstsOfOthers(uid, waiting)
        calls = [message_calls.recalled(space, gid, [first]) for gid, first in firsts.items()]
        recalled = dict(zip(firsts, (yield from call_many(calls)), strict=True))
        found |= {gid: first for gid, first in firsts.items() if recalled[gid] == [False]}
        waiting = list(_past_recalled(waiting, firsts, found))
    return found


def _past_recalled(
    waiting: Sequence[tuple[str, int, int]], firsts: Mapping[str, int], found: Mapping[str, int]
) -> Iterator[tuple[str, int, int]]:
    """Yield where to go on in the groups whose first message is recalled, which no worker has stored yet."""
    for gid, _, trimmed in waiting:
        if gid in firsts and found.get(gid) != firsts[gid]:
            yield gid, firsts[gid], trimmed
