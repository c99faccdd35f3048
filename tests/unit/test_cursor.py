"""A cursor against every order in which pushes and pulls can come."""

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


def pull(cursor: Cursor, stored: list[Message], offset: int, count: int) -> list[Message]:
    """Answer a pull as the server does, and hand it to the cursor."""
    start = cursor.msgid if cursor.msgid is not None else offset
    later = [m for m in stored if msgids.pack(m.msgid) > start]
    page = later[:count]
    more = len(page) < len(later)
    return cursor.pulled(PullResult(start, 0, len(stored), page, more), MessagePage(page, more))


@pytest.mark.parametrize("seed", range(200))
def test_a_cursor_hands_over_every_message_once_and_in_order_whatever_is_lost(seed: int) -> None:
    # Given a group that talks while a session comes, loses pushes and pulls in pages
    chance = random.Random(seed)
    stored = [message(seq) for seq in range(1, chance.randrange(6))]
    acked = chance.randrange(len(stored) + 1)
    offset = msgids.pack(stored[acked - 1].msgid) if acked else 0
    cursor, handed_over, in_flight = Cursor("g"), [], []
    # When
    for _ in range(60):
        match chance.choice(["send", "hear", "lose", "pull"]):
            case "send":
                stored.append(message(len(stored) + 1))
                in_flight.append(stored[-1])
            case "hear" if in_flight:
                pushed = in_flight.pop(0)
                if cursor.pushed(msgids.pack(pushed.msgid), pushed.seq, ""):
                    handed_over.append(pushed)
            case "lose" if in_flight:
                in_flight.pop(0)
            case "pull" if cursor.behind:
                handed_over += pull(cursor, stored, offset, chance.choice([1, 2, 100]))
    cursor.behind = True
    while cursor.behind:
        handed_over += pull(cursor, stored, offset, 2)
    # Then
    assert handed_over == stored[acked:]


def test_a_pushed_message_waits_for_the_first_pull() -> None:
    cursor = Cursor("g")
    assert not cursor.pushed(msgids.pack(message(1).msgid), 1, "")
    assert cursor.behind


def test_a_cursor_returns_to_the_offset_when_lost_messages_come_back_before_it() -> None:
    # Given a session that has two messages; Redis had lost one between them
    cursor = Cursor("g")
    first, lost, second = message(1), message(2), message(3)
    before = [first, replace(second, seq=2)]
    assert pull(cursor, before, 0, 10) == before
    # When the lost one is back, and another one is pushed
    stored = [first, lost, second, message(4)]
    assert not cursor.pushed(msgids.pack(stored[-1].msgid), 4, "")
    assert cursor.behind
    # Then it has to begin again, and gets what it has missed
    offset = msgids.pack(first.msgid)
    assert pull(cursor, stored, offset, 10) == []
    assert (cursor.msgid, cursor.behind) == (None, True)
    assert pull(cursor, stored, offset, 10) == stored[1:]
