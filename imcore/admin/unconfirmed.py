"""Which tallies their senders do not know yet, as SQL tells it: put back where Redis has lost that."""

from collections.abc import Iterable, Sequence

from imcore.admin.audit_messages import chunks
from imcore.admin.counting import Counter, Told
from imcore.chat import Chat
from imcore.sql.rows import SpanRow
from imcore.sql.stored import Light
from imcore.streams import restore_calls

MESSAGES = 10_000
"""For how many messages the spans are gone through at once."""

PAGE = 200
"""How many messages one call marks."""


def mark_unconfirmed(chat: Chat, gid: str, messages: Iterable[Light], spans: Sequence[SpanRow]) -> dict[str, int]:
    """Mark the messages of a group of which more have read than their senders have confirmed.

    Return how many were not marked before, by sender.
    """
    k = chat.link.space.group(gid)
    marked: dict[str, int] = {}
    for some in chunks((light for light in messages if light.recalls is None), MESSAGES):
        counter = Counter([Told(light.msgid, light.sender_uid) for light in some])
        for span in spans:
            counter.add(span)
        dirty: dict[str, list[int]] = {}
        for light, count in zip(some, counter.counts(), strict=True):
            if count.read != light.confirmed_read:
                dirty.setdefault(light.sender_uid, []).append(light.msgid)
        for uid, each in dirty.items():
            added = chat.link.run_many([restore_calls.dirty(k, uid, page) for page in chunks(each, PAGE)])
            marked[uid] = marked.get(uid, 0) + sum(added)
    return marked
