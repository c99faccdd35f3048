"""Sessions that share a place: each is handed what it would be handed alone, and acks what it has received."""

import random
from collections import defaultdict

import pytest

from imcore import msgid as msgids
from imcore.live.acks import UIDS_PER_CALL, AckBook, Waiting, split, targets
from imcore.live.feed import Feed, Place
from imcore.live.rooms import Arrived, Audience, Room, Session
from imcore.streams.calls import Pulled, Target
from imcore.values import Message

BASE = msgids.EPOCH_MS + 1000


def message(seq: int, gid: str = "g") -> Message:
    return Message(gid, f"{BASE + seq}-0", seq, "ann", f"message {seq}")


def packed(seq: int) -> int:
    return msgids.pack(message(seq).msgid)


def arrived(audience: Audience, seq: int, gid: str = "g") -> Arrived:
    return Arrived(audience, message(seq, gid), packed(seq))


def pull(session: Session, stored: list[Message], count: int) -> list[Message]:
    """Answer a session's pull as the server does: from its place, or from the first message on."""
    feed = session.feeds["g"]
    page = [m for m in stored if msgids.pack(m.msgid) > (feed.msgid or 0)][:count]
    return feed.pulled(Pulled(feed.msgid or 0, 0, len(stored), page), page, full=len(page) == count)


class Story:
    """A group that goes on while sessions come and go, lose pushes, and pull by themselves."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.room = Room("g")
        self.stored: list[Message] = []
        self.in_flight: list[Message] = []
        self.here: list[Session] = []
        self.got: dict[Session, list[int]] = defaultdict(list)

    def send(self) -> None:
        self.stored.append(message(len(self.stored) + 1))
        self.in_flight.append(self.stored[-1])

    def hear(self) -> None:
        if self.in_flight:
            pushed = self.in_flight.pop(0)
            events, behind = self.room.pushed(pushed, msgids.pack(pushed.msgid))
            for event in events:
                for session in event.sessions:
                    self.got[session].append(event.message.seq)
            assert all(session.feeds["g"].behind for session in behind)

    def lose(self) -> None:
        if self.in_flight and self.dice.random() < 0.2:
            self.in_flight.pop(0)

    def pull(self) -> None:
        if self.here:
            self.catch_up(self.dice.choice(self.here), self.dice.choice([1, 2, 100]))

    def come(self) -> None:
        if len(self.here) < 8:
            self.here.append(Session("u"))
            self.room.enter(self.here[-1], Feed("g"))

    def go(self) -> None:
        if len(self.here) > 3:
            gone = self.here.pop(self.dice.randrange(len(self.here)))
            assert self.room.leave(gone).seq in {None, 0, *self.got[gone][-1:]}

    def fall_behind(self) -> None:
        if self.here and self.dice.random() < 0.3:
            self.room.fall_behind(self.dice.choice(self.here))

    def catch_up(self, session: Session, count: int) -> None:
        if session.feeds["g"].behind:
            self.got[session] += [m.seq for m in pull(session, self.stored, count)]
            self.room.gather()


@pytest.mark.parametrize("seed", range(100))
def test_whoever_shares_a_feed_is_handed_every_message_once_and_in_order(seed: int) -> None:
    # Given
    story = Story(seed)
    steps = [story.send, story.hear, story.send, story.hear, story.lose, story.pull, story.pull]
    # When
    for _ in range(120):
        story.dice.choice([*steps, story.come, story.go, story.fall_behind])()
    while story.in_flight:
        story.hear()
    for session in story.here:
        story.room.fall_behind(session)
        while session.feeds["g"].behind:
            story.catch_up(session, 3)
    # Then
    assert all(story.got[session] == [m.seq for m in story.stored] for session in story.here)
    assert sorted(map(id, story.room)) == sorted(map(id, story.here))
    assert len({id(session.feeds["g"]) for session in story.here}) <= 1


def test_one_event_tells_all_who_are_at_one_place() -> None:
    # Given a thousand sessions that have caught up
    room, sessions = Room("g"), [Session(f"u{number}") for number in range(1000)]
    for session in sessions:
        room.enter(session, Feed("g", 0, 0, behind=False))
    room.gather()

    # When messages come
    first, _ = room.pushed(message(1), packed(1))
    second, _ = room.pushed(message(2), packed(2))

    # Then it is one event each time, for the same audience
    assert [set(event.sessions) for event in first] == [set(sessions)]
    assert first[0].audience is second[0].audience


def test_acks_are_due_by_count_or_by_time_and_name_the_newest_of_each_group() -> None:
    # Given two who have received two messages of one group, and one of another
    book, both = AckBook(3, 1.0), Audience([Session("ann"), Session("bob"), Session("bob")])
    for each in (arrived(both, 1), arrived(both, 2), arrived(both, 7, "h")):
        book.received(each, 10.0)
    assert book.take_due(10.9) == []
    assert book.next_due() == 11.0

    # When a third one comes
    book.received(arrived(both, 3), 10.5)

    # Then that group is due at once, the other one in time
    assert targets(book.take_due(10.5)) == {"g": [Target(packed(3), ("ann", "bob"), 3)]}
    assert targets(book.take_due(11.0)) == {"h": [Target(packed(7), ("ann", "bob"), 7)]}
    assert book.next_due() == float("inf")


def test_no_call_acks_for_more_than_so_many() -> None:
    # Given acks of a few, of many, and of more than one call takes
    def named(count: int) -> tuple[str, ...]:
        return tuple(f"u{number}" for number in range(count))

    acks = [Target(1, named(3), 1), Target(2, named(UIDS_PER_CALL - 3), 2), Target(3, named(2 * UIDS_PER_CALL + 1), 3)]

    # When
    parts = list(split(acks))

    # Then all are there, in order, in as few calls as can be
    assert [sum(len(target.uids) for target in part) for part in parts] == [*[UIDS_PER_CALL] * 3, 1]
    flat = [(target.msgid, uid) for part in parts for target in part for uid in target.uids]
    assert flat == [(target.msgid, uid) for target in acks for uid in target.uids]


def test_a_session_that_ends_takes_its_part_of_what_is_owed_with_it() -> None:
    # Given two who owe an ack of one group, and one of a full batch of another
    ann, bob = Session("ann"), Session("bob")
    book, both = AckBook(2, 1.0), Audience([ann, bob])
    for each in (arrived(both, 1), arrived(both, 1, "h"), arrived(both, 2, "h")):
        book.received(each, 0.0)

    # When one ends
    mine = targets(book.take_of([ann]))

    # Then the other one's acks are still due, also with what comes next
    assert mine == {"g": [Target(packed(1), ("ann",), 1)], "h": [Target(packed(2), ("ann",), 2)]}
    book.received(arrived(both, 2), 0.5)
    assert targets(book.take_due(0.5)) == {
        "g": [Target(packed(2), ("bob",), 2)],
        "h": [Target(packed(2), ("bob",), 2)],
    }


def test_what_could_not_be_sent_is_due_again() -> None:
    book, waiting = AckBook(10, 1.0), Waiting("g", Audience([Session("ann")]), Place(packed(4), 4), 5.0)
    book.put_back([waiting])
    assert book.next_due() == 0.0
    assert book.take_due(0.0) == [waiting]


def test_a_place_of_a_former_session_is_acked_in_time() -> None:
    book, session = AckBook(1, 1.0), Session("ann")
    book.resume("g", session, Place(packed(4), 4), 1.0)
    assert book.take_due(1.5) == []
    assert targets(book.take_due(2.0)) == {"g": [Target(packed(4), ("ann",), 4)]}
