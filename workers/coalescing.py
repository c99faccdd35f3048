"""Coalescing receipts: which tallies many offset moves have changed, and how few digests reported them. No I/O."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

from imcore.streams.calls.journal_calls import CoalescingCounts
from imcore.streams.calls.receipt_calls import Segment
from imcore.streams.events import Acked, Entry, Move, Sent
from imcore.util.batches import grouped

Digest = tuple[str, str, list[int]]
"""The gid, the sender, and the messages (packed) that the digest names."""


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
            segment = Segment(start, position, _only(movers))
            if covered and (covered[-1].until, covered[-1].only) == (start, segment.only):  # they touch
                segment = segment._replace(after=covered.pop().after)
            covered.append(segment)
        start = position
        movers[uids] += change
        if not movers[uids]:
            del movers[uids]
    return covered


def _only(movers: Iterable[tuple[str, ...]]) -> str:
    """Return the one member among the movers; '' if there are several."""
    uids = (uid for uids in movers for uid in uids)
    first = next(uids, "")
    return first if all(uid == first for uid in uids) else ""


def moves_by_group(entries: Iterable[Entry]) -> dict[str, list[Move]]:
    acks = (entry.event for entry in entries if isinstance(entry.event, Acked))
    return grouped((event.gid, move) for event in acks for move in event.moves)


def coalescing_counts(entries: Iterable[Entry], digests: Iterable[Digest]) -> dict[int, CoalescingCounts]:
    """Return by partition the acks of these entries, and how many receipts and digests reported them."""
    by_group = grouped((gid, (sender_uid, msgids)) for gid, sender_uid, msgids in digests)
    by_partition = grouped((entry.partition, entry) for entry in entries)
    return {partition: _counts(own, by_group) for partition, own in by_partition.items()}


def _counts(entries: Sequence[Entry], digests: Mapping[str, list[tuple[str, list[int]]]]) -> CoalescingCounts:
    moves = moves_by_group(entries)
    seconds: dict[int, tuple[int, int]] = {}
    for entry in entries:
        event, second = entry.event, entry.time_ms // 1000
        messages, acks = seconds.get(second, (0, 0))
        messages += event.messages if isinstance(event, Sent) else 0
        acks += _acks(event.moves) if isinstance(event, Acked) else 0
        seconds[second] = (messages, acks)
    return CoalescingCounts(
        acks=sum(map(_acks, moves.values())),
        receipts=sum(_receipts(own, digests.get(gid, ())) for gid, own in moves.items()),
        digests=sum(len(digests.get(gid, ())) for gid in moves),
        seconds=seconds,
    )


def _acks(moves: Iterable[Move]) -> int:
    return sum(len(move.uids) for move in moves)


def _receipts(moves: Iterable[Move], digests: Iterable[tuple[str, list[int]]]) -> int:
    """Return the number of pairs of recipient and message. A sender is no recipient of their own message."""
    named = grouped((sender_uid, msgid) for sender_uid, msgids in digests for msgid in msgids)
    own = {uid: sorted(set(msgids)) for uid, msgids in named.items()}
    messages = sorted(msgid for msgids in own.values() for msgid in msgids)
    receipts = 0
    for move in moves:
        receipts += len(move.uids) * _covered(messages, move)
        receipts -= sum(_covered(own[uid], move) for uid in move.uids if uid in own)
    return receipts


def _covered(msgids: Sequence[int], move: Move) -> int:
    return bisect_right(msgids, move.to) - bisect_right(msgids, move.start)
