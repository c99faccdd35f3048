"""Coalescing receipts: which tallies many offset moves have changed, and how few digests reported them. No I/O."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter

from imcore.streams.calls.journal_calls import CoalescingCounts
from imcore.streams.calls.receipt_calls import Segment, TallyChange
from imcore.streams.events import Acked, Entry, Move, Sent


def segments(moves: Iterable[Move]) -> list[Segment]:
    """Return the ranges of messages that moves of one group have covered, in order and without overlaps.

    A message's tally changes when anyone but its sender moves over it; so a range that one member alone has moved over
    names them. Takes O(n log n) for n moves, however many messages they cover.
    """
    bounds: list[tuple[int, int, tuple[str, ...]]] = []
    for move in moves:
        if move.start < move.to:
            bounds += ((move.start, 1, move.uids), (move.to, -1, move.uids))
    bounds.sort(key=itemgetter(0))
    covered: list[Segment] = []
    movers: Counter[tuple[str, ...]] = Counter()
    start = 0
    for position, change, uids in bounds:
        if movers and position > start:
            _append(covered, Segment(start, position, _only(movers)))
        start = position
        movers[uids] += change
        if not movers[uids]:
            del movers[uids]
    return covered


def _only(movers: Iterable[tuple[str, ...]]) -> str:
    """Return the one member among the movers; '' if there are several."""
    member = ""
    for uids in movers:
        for uid in uids:
            if member and uid != member:
                return ""
            member = uid
    return member


def _append(covered: list[Segment], segment: Segment) -> None:
    """Append a range, or join it to the last one if they touch and name the same member."""
    if covered and covered[-1].until == segment.after and covered[-1].only == segment.only:
        segment = Segment(covered.pop().after, segment.until, segment.only)
    covered.append(segment)


class CoalescingStats:
    """The digests that were sent for some entries: how many acks they stand for, until the entries are done."""

    def __init__(self) -> None:
        self._digests: Counter[str] = Counter()
        self._messages: dict[str, dict[str, list[int]]] = {}
        """By gid and sender: the messages (packed) that the digests name."""

    def add_digest(self, gid: str, sender_uid: str, changes: Iterable[TallyChange]) -> None:
        self._digests[gid] += 1
        self._messages.setdefault(gid, {}).setdefault(sender_uid, []).extend(change.msgid for change in changes)

    def counts(self, entries: Iterable[Entry]) -> dict[int, CoalescingCounts]:
        """Return the counts for these entries, by partition."""
        by_partition: dict[int, list[Entry]] = {}
        for entry in entries:
            by_partition.setdefault(entry.partition, []).append(entry)
        return {partition: self._counts(page) for partition, page in by_partition.items()}

    def _counts(self, entries: Sequence[Entry]) -> CoalescingCounts:
        moves: dict[str, list[Move]] = {}
        seconds: dict[int, tuple[int, int]] = {}
        for entry in entries:
            event = entry.event
            if isinstance(event, Acked):
                moves.setdefault(event.gid, []).extend(event.moves)
            messages, acks = seconds.get(entry.time_ms // 1000, (0, 0))
            messages += event.messages if isinstance(event, Sent) else 0
            acks += _acks(event.moves) if isinstance(event, Acked) else 0
            seconds[entry.time_ms // 1000] = (messages, acks)
        return CoalescingCounts(
            acks=sum(map(_acks, moves.values())),
            receipts=sum(_receipts(each, self._messages.get(gid, {})) for gid, each in moves.items()),
            digests=sum(self._digests[gid] for gid in moves),
            seconds=seconds,
        )


def _acks(moves: Iterable[Move]) -> int:
    return sum(len(move.uids) for move in moves)


def _receipts(moves: Iterable[Move], by_sender: dict[str, list[int]]) -> int:
    """Return the number of pairs of recipient and message. A sender is no recipient of their own message."""
    own = {uid: sorted(set(msgids)) for uid, msgids in by_sender.items()}
    messages = sorted(msgid for msgids in own.values() for msgid in msgids)
    receipts = 0
    for move in moves:
        receipts += len(move.uids) * _covered(messages, move)
        receipts -= sum(_covered(own[uid], move) for uid in move.uids if uid in own)
    return receipts


def _covered(msgids: Sequence[int], move: Move) -> int:
    return bisect_right(msgids, move.to) - bisect_right(msgids, move.start)
