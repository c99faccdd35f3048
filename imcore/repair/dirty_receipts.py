"""Which tallies their senders do not know yet, as SQL tells it: put back where Redis has lost that."""

from collections.abc import Iterable, Sequence

from imcore.model.rows import SpanRow
from imcore.repair.check_messages import chunks
from imcore.repair.counting import CountedMessage, Counter
from imcore.sql.queries import Light
from imcore.streams.calls import repair_calls
from imcore.system import System

MESSAGES = 10_000
"""For how many messages the spans are gone through at once."""

PAGE = 200
"""How many messages one call marks."""


def mark_unconfirmed(system: System, gid: str, messages: Iterable[Light], spans: Sequence[SpanRow]) -> dict[str, int]:
    """Mark the messages of a group of which more have read than their senders have confirmed.

    Return how many were not marked before, by sender.
    """
    k = system.client.space.group(gid)
    marked: dict[str, int] = {}
    for some in chunks((light for light in messages if light.recalls is None), MESSAGES):
        counter = Counter([CountedMessage(light.msgid, light.sender_uid) for light in some])
        for span in spans:
            counter.add(span)
        dirty: dict[str, list[int]] = {}
        for light, count in zip(some, counter.counts(), strict=True):
            if count.read != light.confirmed_read:
                dirty.setdefault(light.sender_uid, []).append(light.msgid)
        for uid, each in dirty.items():
            added = system.client.call_many([repair_calls.dirty(k, uid, page) for page in chunks(each, PAGE)])
            marked[uid] = marked.get(uid, 0) + sum(added)
    return marked
