"""Tallies by their definition: who was a member when a message came, and whose offset has passed it. No I/O.

Redis finds the same numbers in another way, by the ranks of scores; so the one can be held against the other.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from imcore.model.rows import SpanRow
from imcore.streams.calls.receipt_calls import Counts


class CountedMessage(NamedTuple):
    """A message (packed msgid) and who sent it."""

    msgid: int
    sender_uid: str


class Counter:
    """Counts for messages, which are in order of msgid; give it every span of their group with `add`.

    Takes O(log n) for a span, and memory for the messages and for the spans of their senders.
    """

    def __init__(self, messages: Sequence[CountedMessage]) -> None:
        self._messages = messages
        self._msgids = [message.msgid for message in messages]
        self._present = [0] * (len(messages) + 1)
        self._read = [0] * (len(messages) + 1)
        self._of_senders: dict[str, list[SpanRow]] = {message.sender_uid: [] for message in messages}

    def add(self, span: SpanRow) -> None:
        """Count a span for each message that came while it lasted."""
        first = bisect_right(self._msgids, span.joined_msgid)
        end = len(self._msgids) if span.left_msgid is None else bisect_right(self._msgids, span.left_msgid)
        _raise(self._present, first, end)
        _raise(self._read, first, min(end, bisect_right(self._msgids, span.acked_msgid)))
        if span.uid in self._of_senders:
            self._of_senders[span.uid].append(span)

    def counts(self) -> list[Counts]:
        """Return read and unread of each message."""
        found = zip(self._messages, accumulate(self._present), accumulate(self._read), strict=False)
        return [self._without_sender(message, present, read) for message, present, read in found]

    def _without_sender(self, message: CountedMessage, present: int, read: int) -> Counts:
        for span in self._of_senders[message.sender_uid]:
            if _covers(span, message.msgid):
                present -= 1
                read -= span.acked_msgid >= message.msgid
        return Counts(read, present - read)


def _raise(steps: list[int], first: int, end: int) -> None:
    if first < end:
        steps[first] += 1
        steps[end] -= 1


def _covers(span: SpanRow, msgid: int) -> bool:
    return span.joined_msgid < msgid and (span.left_msgid is None or msgid <= span.left_msgid)
