"""Reads groups, messages and tallies: Redis first, and SQL for what Redis has trimmed. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from imcore import msgid as msgids
from imcore.errors import ImError, UnknownMessage
from imcore.model.meta import size_of
from imcore.model.rows import MessageRow
from imcore.model.values import Message
from imcore.operations.effects import (
    Effects,
    GetKeyspace,
    SqlQuery,
    answered,
    call_apart,
    call_each,
    call_many,
    raised,
)
from imcore.streams import wire
from imcore.streams.answers import first_hand
from imcore.streams.calls import group_calls, message_calls, receipt_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.message_calls import PullResult
from imcore.streams.calls.receipt_calls import Counts
from imcore.streams.keys import Keyspace
from imcore.util.batches import batches

if TYPE_CHECKING:
    from imcore.sql.database import Database

PAGE = 500
"""The most messages or tallies that one call of Redis answers."""

PAGE_BYTES = 1 << 20
"""The most bytes of text that one call answers: they take the server some milliseconds."""

SQL_PAGE = 100
"""The most messages that SQL answers at once for a pull: it does not count bytes."""
SQL_TEXT_BYTES = 2048
"""Few texts are longer."""


# What operations query of the database, by name. Msgids are packed, and messages come oldest first.


@dataclass(frozen=True, slots=True)
class MessagesByMsgid(SqlQuery[dict[int, MessageRow]]):
    """Those of some messages of a group that exist, by msgid."""

    gid: str
    msgids: Sequence[int]

    def run(self, database: "Database") -> dict[int, MessageRow]:
        return database.messages(self.gid, self.msgids)


@dataclass(frozen=True, slots=True)
class MessagesAfter(SqlQuery[list[MessageRow]]):
    """The first messages with after < msgid <= until."""

    gid: str
    after: int
    until: int
    limit: int

    def run(self, database: "Database") -> list[MessageRow]:
        return database.messages_after(self.gid, self.after, until=self.until, limit=self.limit)


@dataclass(frozen=True, slots=True)
class MessagesBefore(SqlQuery[list[MessageRow]]):
    """The last messages with msgid < before, without the newest `skip`."""

    gid: str
    before: int
    limit: int
    skip: int = 0

    def run(self, database: "Database") -> list[MessageRow]:
        return database.messages_before(self.gid, self.before, limit=self.limit, skip=self.skip)


Sides = tuple[list[MessageRow], list[MessageRow]]
"""Messages before a place, and after it."""


@dataclass(frozen=True, slots=True)
class MessagesAround(SqlQuery[Sides]):
    """The last `older` messages before `low` and the first `newer` ones from `high` on, with after < msgid <= until."""

    gid: str
    after: int
    until: int
    low: int
    older: int
    high: int
    newer: int

    def run(self, database: "Database") -> Sides:
        between = self.after, self.until
        return database.history.around(self.gid, between, self.low, self.older, self.high, self.newer)


@dataclass(frozen=True, slots=True)
class MessagesAroundForeign(SqlQuery[Sides]):
    """The messages around the first one past an offset that is not a user's own, with after < msgid <= until; or none.

    It is no tombstone, but may be recalled.
    """

    gid: str
    after: int
    until: int
    uid: str
    offset: int
    older: int
    newer: int

    def run(self, database: "Database") -> Sides:
        between = self.after, self.until
        return database.history.around_foreign(self.gid, self.uid, between, self.offset, self.older, self.newer)


@dataclass(frozen=True, slots=True)
class OpenDatabase(SqlQuery[None]):
    """Connect, and see whether the database has the data that Redis has."""

    def run(self, database: "Database") -> None:
        database.check_version()


@dataclass(frozen=True, slots=True)
class ReadTimes(SqlQuery[dict[str, int]]):
    """When each reader read a message, in ms since 1970 by uid."""

    gid: str
    msgid: int

    def run(self, database: "Database") -> dict[str, int]:
        return database.read_times(self.gid, self.msgid)


def open_database() -> Effects[None]:
    yield from OpenDatabase()


def stored_message(gid: str, msgid: int) -> Effects[MessageRow]:
    """Return a message (packed msgid) from SQL. Raise UnknownMessage."""
    rows = yield from MessagesByMsgid(gid, [msgid])
    if msgid not in rows:
        raise unknown_message(gid, msgid)
    return rows[msgid]


def unknown_message(gid: str, msgid: int) -> UnknownMessage:
    return UnknownMessage(f"{msgids.unpack(msgid)} is not a message of {gid!r}")


class MessagePage(NamedTuple):
    """Messages in order. `more`: others come after them."""

    messages: list[Message]
    more: bool


def groups_of(space: Keyspace, uids: Sequence[str]) -> Effects[dict[str, list[str]]]:
    answers = yield from groups_or_errors(space, uids)
    return {uid: raised(gids) for uid, gids in answers.items()}


def groups_or_errors(space: Keyspace, uids: Sequence[str]) -> Effects[dict[str, list[str] | ImError]]:
    """Return the gids of each user's groups, in order, or the error that keeps that user's from being read."""
    # The hidden groups come last: a group whose creation was finished meanwhile counts.
    batch = [*(call for uid in uids for call in group_calls.groups_of(space, uid)), *group_calls.hidden(space)]
    answers = yield from call_apart(batch)
    rest = iter(answers)
    listed = {uid: [next(rest) for _ in space.served] for uid in uids}
    hidden = list(rest)
    return {uid: _without(gids, hidden) for uid, gids in listed.items()}


def groups_that_answer(space: Keyspace, uid: str) -> Effects[tuple[list[str], tuple[int, ...]]]:
    """Return a user's groups, gids in order, in the partitions that answer, and the partitions that are silent."""
    of_user, hidden = group_calls.groups_of(space, uid), group_calls.hidden(space)
    answers = yield from answered([*of_user, *hidden])
    asked = [*space.served] * (len(answers) // len(space.served))
    silent = {partition for partition, answer in zip(asked, answers, strict=True) if answer is None}
    known = [[] if partition in silent else answer or [] for partition, answer in zip(asked, answers, strict=True)]
    return sorted(_gids(known[: len(of_user)]) - _gids(known[len(of_user) :])), tuple(sorted(silent))


def _without(answers: Sequence[list[str] | ImError], hidden: Sequence[list[str] | ImError]) -> list[str] | ImError:
    for answer in (*answers, *hidden):
        if isinstance(answer, ImError):
            return answer
    return sorted(_gids(answers) - _gids(hidden))


def _gids(answers: Sequence[list[str] | ImError]) -> set[str]:
    return {gid for gids in answers if not isinstance(gids, ImError) for gid in gids}


def begun(gid: str, pulled: PullResult) -> Effects[PullResult]:
    """Return a pull that begins after all that it leaves out, of which SQL may know more. Raise SQL's error."""
    left_out, start = pulled.left_out, pulled.start
    if left_out is None:
        return pulled
    if left_out.keep is not None:
        rows = yield from MessagesBefore(gid, pulled.trimmed + 1, 1, left_out.keep)
        if not rows or rows[0].msgid <= left_out.after:
            return pulled._replace(left_out=None)
        start = rows[0].msgid
    if left_out.after < pulled.trimmed:
        rows = yield from MessagesAfter(gid, left_out.after, pulled.trimmed, 1)
        left_out = left_out._replace(first=rows[0].msgid) if rows else left_out
    return pulled._replace(start=start, left_out=left_out)


def page(space: Keyspace, gid: str, pulled: PullResult, most: int, most_bytes: int) -> Effects[MessagePage | ImError]:
    """Return the pulled messages with those before them that only SQL still has; or SQL's error.

    At most `most` messages, and `most_bytes` of texts and metas, exceeded by the first message only.
    """
    if pulled.start >= pulled.trimmed:
        return MessagePage(pulled.messages, pulled.more)
    limit = min(most, SQL_PAGE, 1 + most_bytes // SQL_TEXT_BYTES)
    try:
        rows = yield from MessagesAfter(gid, pulled.start, pulled.trimmed, limit)
    except ImError as error:
        return error
    trimmed = yield from messages(space, gid, rows)
    is_whole = len(rows) < limit
    both = [*trimmed, *(pulled.messages if is_whole else ())]
    few = both[: min(most, max(1, _within(both, most_bytes)))]
    return MessagePage(few, not is_whole or pulled.more or len(few) < len(both))


def _within(messages: Sequence[Message], most_bytes: int) -> int:
    """Count the first messages that have at most `most_bytes` together."""
    return sum(size <= most_bytes for size in accumulate(map(bytes_of, messages)))


def bytes_of(message: Message) -> int:
    """Return about how many bytes the text and the meta of a message have."""
    return len(message.content.encode(errors="surrogatepass")) + size_of(message.meta)


def messages(space: Keyspace, gid: str, rows: Sequence[MessageRow]) -> Effects[list[Message]]:
    """Return messages that came from SQL. Redis knows the recalls that no worker has stored yet."""
    if not rows:
        return []
    [recalled] = yield from call_many([message_calls.recalled(space, gid, [row.msgid for row in rows])])
    return [
        wire.message_of_row(row.without_text()._replace(recalled=True) if is_recalled and row.recalls is None else row)
        for row, is_recalled in zip(rows, recalled, strict=True)
    ]


Messages = Mapping[str, Sequence[int]]
Tallies = dict[tuple[str, int], Counts | ImError]
"""By gid and msgid: read and unread, or the error of that message: UnknownGroup, UnknownMessage, RedisRefuses (a
partition moves to another node), RedisUnavailable (a node of a cluster is away), SQL's, or that of a damaged group."""


def tallies(space: Keyspace, wanted: Messages) -> Effects[Tallies]:
    """Return how many have read each message and how many have not."""
    counts = yield from _counts(space, {gid: [(msgid, "", "") for msgid in packed] for gid, packed in wanted.items()})
    for gid, packed in wanted.items():
        trimmed = [msgid for msgid in packed if isinstance(counts[gid, msgid], Trimmed)]
        if trimmed:
            counts.update((yield from _trimmed_tallies(space, gid, trimmed)))
    return counts


def _trimmed_tallies(space: Keyspace, gid: str, trimmed: Sequence[int]) -> Effects[Tallies]:
    """Return the tallies of messages that only SQL still has: Redis counts them, given their senders."""
    try:
        rows = yield from MessagesByMsgid(gid, trimmed)
    except ImError as error:
        return {(gid, msgid): error for msgid in trimmed}
    unknown: Tallies = {(gid, msgid): unknown_message(gid, msgid) for msgid in trimmed}
    return unknown | (yield from counts_of_rows(space, gid, list(rows.values())))


def counts_of_rows(space: Keyspace, gid: str, rows: Iterable[MessageRow]) -> Effects[Tallies]:
    """Return the tallies of messages that came from SQL, whether Redis still has them or not."""
    named = [(row.msgid, row.sender_uid, "" if row.span is None else row.span) for row in rows]
    return (yield from _counts(space, {gid: named}))


def _counts(space: Keyspace, wanted: Mapping[str, Sequence[tuple[int, str, int | str]]]) -> Effects[Tallies]:
    parts = [(gid, part) for gid, of_group in wanted.items() for part in batches(of_group, PAGE)]
    answers = yield from call_apart([receipt_calls.tallies(space, gid, part) for gid, part in parts])
    tallies: Tallies = {}
    for (gid, part), answer in zip(parts, answers, strict=True):
        counts = [answer] * len(part) if isinstance(answer, ImError) else answer
        tallies.update(((gid, message[0]), count) for message, count in zip(part, counts, strict=True))
    return tallies


def dataset() -> Effects[str | None]:
    """Return the name of the data in Redis, or None while Redis has no data."""
    space = yield from GetKeyspace()
    calls = [group_calls.dataset(place) for place in space.configurations()]
    return first_hand((yield from call_each(calls, waits_for_all=False)))
