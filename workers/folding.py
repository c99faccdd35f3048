"""Folding: which messages' tallies a heap of offset moves has changed. No I/O."""

from collections import Counter
from collections.abc import Iterable
from operator import itemgetter

from imcore.streams.calls.receipt_calls import Segment
from imcore.streams.events import Move


def segments(moves: Iterable[Move]) -> list[Segment]:
    """Return the stretches of messages that moves of one group have covered, in order, touching but never overlapping.

    A message's tally changes when anyone but its sender moves over it; so a stretch that one member alone has moved
    over names them. Takes O(n log n) for n moves, however many messages they cover.
    """
    bounds: list[tuple[int, int, tuple[str, ...]]] = []
    for move in moves:
        if move.start < move.to:
            bounds += ((move.start, 1, move.uids), (move.to, -1, move.uids))
    bounds.sort(key=itemgetter(0))
    found: list[Segment] = []
    over: Counter[tuple[str, ...]] = Counter()
    start = 0
    for position, change, uids in bounds:
        if over and position > start:
            _append(found, Segment(start, position, _only(over)))
        start = position
        over[uids] += change
        if not over[uids]:
            del over[uids]
    return found


def _only(over: Iterable[tuple[str, ...]]) -> str:
    """Return who all of these are, '' if they are more than one."""
    who = ""
    for uids in over:
        for uid in uids:
            if who and uid != who:
                return ""
            who = uid
    return who


def _append(found: list[Segment], segment: Segment) -> None:
    """Join a stretch to the one before it where they touch and name the same."""
    if found and found[-1].until == segment.after and found[-1].only == segment.only:
        found[-1] = Segment(found[-1].after, segment.until, segment.only)
    else:
        found.append(segment)
