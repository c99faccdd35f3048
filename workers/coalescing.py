"""The storm of receipts in figures: how many acks there were, what they stood for, in how many digests it was told."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

from imcore.streams.calls.journal_calls import CoalescingCounts
from imcore.streams.calls.receipt_calls import TallyChange
from imcore.streams.events import Acked, Entry, Move, Sent


class CoalescingStats:
    """What senders are told of some entries, until these are confirmed."""

    def __init__(self) -> None:
        self._digests: Counter[str] = Counter()
        self._messages: dict[str, dict[str, list[int]]] = {}
        """By gid and sender: the messages (packed) that the digests name."""

    def digest(self, gid: str, sender_uid: str, changes: Iterable[TallyChange]) -> None:
        """Take in one digest."""
        self._digests[gid] += 1
        self._messages.setdefault(gid, {}).setdefault(sender_uid, []).extend(change.msgid for change in changes)

    def of(self, entries: Iterable[Entry]) -> dict[int, CoalescingCounts]:
        """Return what telling of these entries came to, by partition."""
        by_partition: dict[int, list[Entry]] = {}
        for entry in entries:
            by_partition.setdefault(entry.partition, []).append(entry)
        return {partition: self._storm(some) for partition, some in by_partition.items()}

    def _storm(self, entries: Sequence[Entry]) -> CoalescingCounts:
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
    """Return how many pairs of recipient and message there are: own messages have no receipt of their sender."""
    own = {uid: sorted(set(msgids)) for uid, msgids in by_sender.items()}
    messages = sorted(msgid for msgids in own.values() for msgid in msgids)
    total = 0
    for move in moves:
        total += len(move.uids) * _within(messages, move)
        total -= sum(_within(own[uid], move) for uid in move.uids if uid in own)
    return total


def _within(msgids: Sequence[int], move: Move) -> int:
    return bisect_right(msgids, move.to) - bisect_right(msgids, move.start)
