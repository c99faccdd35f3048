"""A feed against every order in which pushes and pulls can come."""

import random
from dataclasses import replace

import pytest

from imcore import msgid as msgids
from imcore.gateway.cursor import Cursor
from imcore.model.values import Message
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import PullResult

BASE = msgids.EPOCH_MS + 1000


def message(seq: int, gid: str = "g") -> Message:
    return Message(gid, f"{BASE + seq}-0", seq, "ann", f"message {seq}")


def pull(feed: Cursor, stored: list[Message], offset: int, count: int) -> list[Message]:
    """Answer a pull as the server does, and hand it to the feed."""
    start = feed.msgid if feed.msgid is not None else offset
    later = [m for m in stored if msgids.pack(m.msgid) > start]
    page = later[:count]
    more = len(page) < len(later)
    return feed.pulled(PullResult(start, 0, len(stored), page, more), MessagePage(page, more))


@pytest.mark.parametrize("seed", range(200))
def test_every_message_is_handed_over_once_and_in_order_whatever_is_lost(seed: int) -> None:
    # Given a group that goes on while a session comes, loses pushes and pulls in pages
    chance = random.Random(seed)
    stored = [message(seq) for seq in range(1, chance.randrange(6))]
    acked = chance.randrange(len(stored) + 1)
    offset = msgids.pack(stored[acked - 1].msgid) if acked else 0
    feed, handed_over, in_flight = Cursor("g"), [], []
    # When
    for _ in range(60):
        match chance.choice(["send", "hear", "lose", "pull"]):
            case "send":
                stored.append(message(len(stored) + 1))
                in_flight.append(stored[-1])
            case "hear" if in_flight:
                pushed = in_flight.pop(0)
                if feed.pushed(msgids.pack(pushed.msgid), pushed.seq):
                    handed_over.append(pushed)
            case "lose" if in_flight:
                in_flight.pop(0)
            case "pull" if feed.behind:
                handed_over += pull(feed, stored, offset, chance.choice([1, 2, 100]))
    feed.behind = True
    while feed.behind:
        handed_over += pull(feed, stored, offset, 2)
    # Then
    assert handed_over == stored[acked:]


def test_a_pushed_message_waits_for_the_first_pull() -> None:
    feed = Cursor("g")
    assert not feed.pushed(msgids.pack(message(1).msgid), 1)
    assert feed.behind


def test_a_feed_begins_again_at_the_offset_where_messages_came_between_those_that_it_had() -> None:
    # Given a session that has heard two messages, between which Redis had lost one
    feed = Cursor("g")
    first, lost, second = message(1), message(2), message(3)
    before = [first, replace(second, seq=2)]
    assert pull(feed, before, 0, 10) == before
    # When the lost one is back, and another one is pushed
    stored = [first, lost, second, message(4)]
    assert not feed.pushed(msgids.pack(stored[-1].msgid), 4)
    assert feed.behind
    # Then it has to begin again, and gets what it has missed
    offset = msgids.pack(first.msgid)
    assert pull(feed, stored, offset, 10) == []
    assert (feed.msgid, feed.behind) == (None, True)
    assert pull(feed, stored, offset, 10) == stored[1:]
