"""Tallies that a sender has not confirmed, found from SQL alone."""

from collections.abc import Iterable, Sequence

from imcore.model.rows import SpanRow
from imcore.repair.state import Counter
from imcore.sql.queries import Light
from imcore.streams.calls import repair_calls
from imcore.system import System
from imcore.util.batches import batches, grouped

PAGE = 200
COUNTED_AT_ONCE = 10_000
"""For how many messages the spans are read once."""


def mark_unconfirmed(system: System, gid: str, messages: Iterable[Light], spans: Sequence[SpanRow]) -> dict[str, int]:
    """Mark the messages of a group that more have read than their senders have confirmed.

    Two may do so at once: it may take longer than a group's lock. Return how many were not marked before, by sender.
    """
    k = system.client.space.group(gid)
    marked: dict[str, int] = {}
    for batch in batches((light for light in messages if light.recalls is None), COUNTED_AT_ONCE):
        counter = Counter([(light.msgid, light.sender_uid) for light in batch])
        for span in spans:
            counter.add(span)
        counts = zip(batch, counter.counts(), strict=True)
        dirty = grouped(
            (light.sender_uid, light.msgid)
            for light, count in counts
            if (count.read, count.delivered) != (light.confirmed_read, light.confirmed_delivered)
        )
        for uid, msgs in dirty.items():
            calls = [repair_calls.dirty(k, uid, page) for page in batches(msgs, PAGE)]
            marked[uid] = marked.get(uid, 0) + sum(system.client.call_many(calls))
    return marked
