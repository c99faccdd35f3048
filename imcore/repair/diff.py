"""The difference between Redis and SQL, as people see it. No I/O: `imcore.repair.compare` reads both sides."""

import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.model.rows import Head, MessageRow, SpanRow
from imcore.repair.state import Changes, GroupMeta, ahead_of, key_of, offset_of
from imcore.streams.calls.receipt_calls import Counts
from imcore.streams.keys import SEPARATOR

MISSING, THERE, NOTHING, UNREADABLE = "missing", "there", "nothing", "cannot be read"
NO_MESSAGE = "no message can have that id"
AT_OFFSET = "not past the offset"

Depends = Literal["group", "head", "trim", "message", "tally", "span", "own", "stored"]

_FIELDS = ("seq", "sender_uid", "span", "content", "client_msgid", "sent_at_ms", "recalls", "meta")
_COMMON_VALUES = 14
"""The values that an entry of any message has. Recalled messages and tombstones have more."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """Both sides of a difference, and what it depends on, at times of a `uid` or packed `msgid`.

    "stored" depends on nothing that happens meanwhile. `unsure`: it was there at every look, but what it depends on
    changed each time. `gid` comes with the comparison of a group; without one it is about the data as a whole.
    `repaired`: it was there, and is no more.
    """

    what: str
    redis: str
    sql: str
    depends: Depends = "stored"
    uid: str = ""
    msgid: int = 0
    unsure: bool = False
    gid: str = ""
    repaired: bool = False

    def explained_by(self, changes: Changes) -> bool:
        """Return whether it may come of what happened while the two sides were read."""
        is_touched = changes.anything or changes.created is not None
        match self.depends:
            case "stored":
                return False
            case "span":
                is_touched |= self.uid in changes.uids
            case "own":
                is_touched |= changes.own(self.uid, self.msgid)
            case "message":
                is_touched |= changes.message(self.msgid)
            case "tally":
                is_touched |= changes.tally(self.msgid)
            case "head":
                is_touched |= changes.first_sent is not None
        return is_touched


BEGUN = Difference("mending", "begun and not ended", "nothing of it")


# Messages.


@dataclass(slots=True)
class MessageDiff:
    """Compares the messages of one group, in order. `is_whole`: from the trim point on, else only the newest ones.

    `below` are the messages up to the trim point, as SQL has them.
    """

    meta: GroupMeta
    below: Head
    backlog: Changes
    is_whole: bool
    unreadable: set[tuple[int, str]]
    """The msgid and field of each value that SQL cannot read. `compare` takes away those that it has reported."""
    own: dict[str, list[int]] = field(default_factory=dict)
    """The messages in Redis that count as unread, by sender."""
    tombstones: dict[int, int] = field(default_factory=dict)
    """The tombstones in Redis, and what each recalls."""
    newest: MessageRow | None = None

    def compare(
        self, row: MessageRow | None, stored: MessageRow | None, values: Sequence[bytes]
    ) -> Iterator[Difference]:
        """Yield how the next message differs; one side may not have it."""
        if row and stored:
            yield from self._fields(row, stored)
        else:
            yield from self._only(row, stored)
        if row is None:
            return
        yield from self._order(row, stored)
        self.newest = row
        if row.recalls is not None:
            self.tombstones[row.msgid] = row.recalls
        elif b"recalled" not in values[_COMMON_VALUES:]:
            self.own.setdefault(row.sender_uid, []).append(row.msgid)

    def head(self) -> Iterator[Difference]:
        """Yield how the head and the trim point differ, once all messages were compared."""
        meta, below, newest = self.meta, self.below, self.newest
        seq, last = (newest.seq, newest.msgid) if newest else (below.last_seq, meta.trimmed)
        if (self.is_whole or newest) and (meta.seq, meta.last) != (seq, last):
            yield Difference("newest message", _place(meta.seq, meta.last), _place(seq, last), "head")
        if not self.is_trim_sound:
            stored = f"{below.messages} up to {_place(below.last_seq, below.newest)}" if below.messages else NOTHING
            yield Difference("trimmed messages", f"up to {described_offset(meta.trimmed)}", stored, "trim")

    @property
    def is_trim_sound(self) -> bool:
        """Whether SQL has as many messages up to the trim point as the last of these counts."""
        return (self.below.messages, self.below.newest) == (self.below.last_seq, self.meta.trimmed)

    def _only(self, row: MessageRow | None, stored: MessageRow | None) -> Iterator[Difference]:
        for only in filter(None, (row, stored)):
            if only is stored or not self.backlog.covers(only.msgid):
                yield of_message("message", only.msgid, _message(row), _message(stored))

    def _fields(self, row: MessageRow, stored: MessageRow) -> Iterator[Difference]:
        if row == stored:
            return
        ignored = {"content", "meta"} if row.msgid in self.backlog.recalled else set()
        for name in _FIELDS:
            value, stored_value = getattr(row, name), getattr(stored, name)
            if value == stored_value or name in ignored:
                continue
            is_unreadable = (row.msgid, name) in self.unreadable
            self.unreadable.discard((row.msgid, name))
            sql = UNREADABLE if is_unreadable else _value(name, stored_value)
            yield of_message(f"{name} of message", row.msgid, _value(name, value), sql)

    def _order(self, row: MessageRow, stored: MessageRow | None) -> Iterator[Difference]:
        """Seqs have no holes, and the first one follows the trim point."""
        before, below = self.newest, self.below
        if before is None:
            if self.is_whole and (row.msgid <= below.newest or row.seq != below.last_seq + 1):
                point = f"trimmed up to {_place(below.last_seq, below.newest)}"
                yield Difference("first message after the trim point", _place(row.seq, row.msgid), point, "trim")
        elif row.seq != before.seq + 1:
            what = f"order of message {msgids.unpack(row.msgid)}"
            # It depends on the message before, since those between the two may just be trimmed.
            redis = f"seq {row.seq} after seq {before.seq}"
            yield Difference(what, redis, _message(stored), "message", msgid=before.msgid)


def of_entry(entry_id: bytes, values: Sequence[bytes]) -> Difference:
    """Return the difference of an entry that is no message."""
    redis = f"no message: {_short(b' '.join(values).decode(errors='replace'))}"
    msgid = msgids.pack_id(entry_id)
    return Difference(f"message {entry_id.decode()} that cannot be read", redis, MISSING, "message", msgid=msgid)


def of_message(what: str, msgid: int, redis: str, sql: str, depends: Depends = "message") -> Difference:
    """Return a difference of one message. `what` comes before its msgid."""
    about = 0 if depends == "stored" else msgid
    return Difference(f"{what} {msgids.unpack(msgid)}", redis, sql, depends, msgid=about)


def of_recalls(scores: Mapping[str, int], wanted: Collection[int]) -> Iterator[Difference]:
    """Recalled messages and tombstones are known as what they are, and no others."""
    known = {int(name) for name, score in scores.items() if name == str(score)}
    for msgid in sorted(known.symmetric_difference(wanted)):
        redis, sql = ("recalled" if msgid in side else "not recalled" for side in (known, wanted))
        yield of_message("recall of message", msgid, redis, sql)
    for name in sorted(scores.keys() - map(str, known)):
        packed = int(name) if name.isdecimal() else msgids.IMPOSSIBLE
        what = f"score of a recalled message {described_offset(packed) if packed <= msgids.HIGHEST else _short(name)}"
        expected = described_offset(packed if packed in wanted else None)
        yield Difference(what, described_offset(scores[name]), expected)


# Spans.


class SpanState(NamedTuple):
    """The scores that Redis has of a span."""

    acked: int | None
    joined: int | None
    left: int | None
    ahead: int | None
    ahead_acked: int | None

    @property
    def delivered(self) -> str:
        """The delivered position in words. Where it belongs to another offset, the text names that offset."""
        if (self.ahead, self.ahead_acked) == (None, None):
            return AT_OFFSET
        index = "" if self.ahead_acked == self.acked else f", with the offset {described_offset(self.ahead_acked)}"
        return described_offset(self.ahead) + index


@dataclass(slots=True)
class SpanDiff:
    """Compares the spans of one group with the desired ones."""

    is_impossible: Callable[[int | None], bool]
    """Whether no message can have an offset."""
    known: set[str] = field(default_factory=set)
    """The keys of the spans that were compared."""
    closed: int = 0
    ahead: int = 0
    ahead_acked: int = 0
    """The number of these spans in each of the two sets that hold delivered positions."""

    def compare(self, row: SpanRow, state: SpanState) -> Iterator[Difference]:
        """Yield how the scores of a span differ."""
        self.known.add(key_of(row))
        self.closed += row.left_msgid is not None
        name, uid = _span_name(row.uid, row.joined_msgid), row.uid
        if state.acked is None and state.joined is None:
            yield of_span(uid, name, MISSING, described_span(row))
            return
        within = offset_of(row)
        offset = row.acked_msgid if self.is_impossible(row.acked_msgid) else within
        if state.acked != offset or offset != within or self.is_impossible(offset):
            yield of_span(uid, f"offset in the {name}", self._offset(state.acked), self._offset(offset))
        if state.joined != row.joined_msgid:
            sides = described_offset(state.joined), described_offset(row.joined_msgid)
            yield of_span(uid, f"beginning of the {name}", *sides)
        if state.left != row.left_msgid or self.is_impossible(state.left):
            yield of_span(uid, f"end of the {name}", self._end(state.left), self._end(row.left_msgid))
        self.ahead += state.ahead is not None
        self.ahead_acked += state.ahead_acked is not None
        yield from self._delivered(row, state, name)

    def _delivered(self, row: SpanRow, state: SpanState, name: str) -> Iterator[Difference]:
        ahead, stored = ahead_of(row), row.delivered_msgid
        in_redis = (None, None) if ahead is None else (ahead, state.acked)
        is_wrong = stored != ahead or self.is_impossible(stored)
        if is_wrong or (state.ahead, state.ahead_acked) != in_redis:
            sql = AT_OFFSET if stored is None else self._offset(max(stored, 0))
            redis = state.delivered + f": {NO_MESSAGE}" * self.is_impossible(state.ahead)
            yield of_span(row.uid, f"delivered in the {name}", redis, sql + ": outside the span" * (stored != ahead))

    def member(self, row: SpanRow, acked: int, follows: int | None, *, is_listed: bool) -> Iterator[Difference]:
        """Yield how a member's consumer group, and their list of groups, differ."""
        if follows != acked:
            sides = f"index at {described_offset(acked)}, SQL at {described_offset(row.acked_msgid)}"
            yield of_span(row.uid, f"consumer group of {row.uid!r}", self._offset(follows), sides)
        if not is_listed:
            yield of_span(row.uid, f"group among those of {row.uid!r}", MISSING, described_span(row))

    def _offset(self, offset: int | None) -> str:
        return described_offset(offset) + f": {NO_MESSAGE}" * self.is_impossible(offset)

    def _end(self, left: int | None) -> str:
        return _described_end(left) + f": {NO_MESSAGE}" * self.is_impossible(left)


def of_own(uid: str, floor: int, actual: Sequence[int], own: Sequence[int]) -> Iterator[Difference]:
    """Yield how a member's own messages past the offset or mark differ. The list also keeps some of before that."""
    wanted = [msgid for msgid in own if msgid > floor]
    listed = [msgid for msgid in actual if msgid > floor]
    for msgid in sorted(set(wanted).symmetric_difference(listed)):
        what = f"own message {msgids.unpack(msgid)} of {uid!r} past the offset"
        redis, sql = (THERE if msgid in side else MISSING for side in (listed, wanted))
        yield Difference(what, redis, sql, "own", uid=uid, msgid=msgid)
    if listed != wanted and set(wanted) == set(listed):
        what = f"order of the own messages of {uid!r} past the offset"
        yield Difference(what, _listed(listed), _listed(wanted), "own", uid=uid, msgid=max(wanted))


def of_stranger(span: str, score: int, set_name: str) -> Difference:
    """Return the difference of a key in one of the sorted sets that is no span."""
    uid, _, joined = span.partition(SEPARATOR)
    name = _span_name(uid, int(joined)) if joined else f"open span of {uid!r}"
    return of_span(uid, f"{name} in {set_name}", described_offset(score), MISSING)


def of_span(uid: str, what: str, redis: str, sql: str) -> Difference:
    return Difference(what, redis, sql, "span", uid=uid)


# Values as people see them.


def described_offset(msgid: int | None) -> str:
    if msgid is None:
        return MISSING
    return msgids.unpack(msgid) if msgid <= msgids.HIGHEST else "no msgid"


def described_span(row: SpanRow) -> str:
    return f"{_described_end(row.left_msgid)}, offset {described_offset(row.acked_msgid)}"


def described_time(ms: int) -> str:
    try:
        return msgids.from_ms(ms).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    except ValueError:
        return UNREADABLE


def described_tally(tally: Counts | ImError) -> str:
    return (
        str(tally)
        if isinstance(tally, ImError)
        else f"{tally.read} read, {tally.unread} unread, {tally.delivered} delivered"
    )


def _described_end(left: int | None) -> str:
    return "open" if left is None else f"left at {described_offset(left)}"


def _message(row: MessageRow | None) -> str:
    return MISSING if row is None else f"seq {row.seq} by {row.sender_uid!r}"


def _place(seq: int | None, msgid: int | None) -> str:
    """Describe the place of a message in its group, or that before all."""
    if (seq, msgid) == (0, 0):
        return "before the first message"
    number = "that is no number" if seq is None else str(seq)
    return f"seq {number} at {'no msgid' if msgid is None else described_offset(msgid)}"


def _value(name: str, value: Any) -> str:
    if value is None:
        return NOTHING
    if name in {"span", "recalls"} and isinstance(value, int):
        return described_offset(value)
    if name == "sent_at_ms" and isinstance(value, int):
        return described_time(value)
    return _short(value)


def _span_name(uid: str, joined: int) -> str:
    return f"span of {uid!r} from {msgids.unpack(joined)}"


def _listed(offsets: Sequence[int]) -> str:
    return _short(" ".join(map(described_offset, offsets)))


def _short(value: object) -> str:
    return _SHORT.repr(value)
