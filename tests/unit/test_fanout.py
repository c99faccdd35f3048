"""Sessions that share a cursor: each gets what it would get alone, and acks what it has received."""

import random
from collections import defaultdict

import pytest

from imcore import msgid as msgids
from imcore.gateway import fanout
from imcore.gateway.acks import AckBuffer, UnackedMessages, targets
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import GroupSubscribers, NewMessage, Recipients, Session
from imcore.model.values import Message
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import UIDS_PER_CALL, AckTarget, PullResult, split_targets

BASE = msgids.EPOCH_MS + 1000


def message(seq: int) -> Message:
    return Message("g", f"{BASE + seq}-0", seq, "ann", f"message {seq}")


def packed(seq: int) -> int:
    return msgids.pack(message(seq).msgid)


def point(seq: int) -> ResumePoint:
    return ResumePoint(packed(seq), seq)


class Story:
    """A group that talks while sessions come and go, lose pushes, and pull, each cursor by itself."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.group = GroupSubscribers("g")
        self.stored: list[Message] = []
        self.in_flight: list[Message] = []
        self.sessions: list[Session] = []
        self.got: dict[Session, list[int]] = defaultdict(list)

    def send(self) -> None:
        self.stored.append(message(len(self.stored) + 1))
        self.in_flight.append(self.stored[-1])

    def take(self, events: list[NewMessage]) -> None:
        for event in events:
            for session in event.sessions:
                self.got[session].append(event.message.seq)

    def hear(self) -> None:
        if self.in_flight:
            pushed = self.in_flight.pop(0)
            events, behind = self.group.pushed(pushed, msgids.pack(pushed.msgid))
            self.take(events)
            assert all(cursor.behind for cursor in behind)

    def lose(self) -> None:
        if self.in_flight and self.dice.random() < 0.2:
            self.in_flight.pop(0)

    def pull(self) -> None:
        if self.sessions:
            self.catch_up(self.dice.choice(self.sessions), self.dice.choice([1, 2, 100]))

    def come(self) -> None:
        if len(self.sessions) < 8:
            self.sessions.append(Session("u"))
            self.group.add(self.sessions[-1], ResumePoint(0))

    def go(self) -> None:
        if len(self.sessions) > 3:
            gone = self.sessions.pop(self.dice.randrange(len(self.sessions)))
            left = self.group.remove(gone)
            assert left
            assert left.seq in {None, 0, *self.got[gone][-1:]}

    def fall_behind(self) -> None:
        if self.sessions and self.dice.random() < 0.3:
            self.group.fall_behind(self.dice.choice(self.sessions).cursors["g"])

    def catch_up(self, session: Session, count: int) -> None:
        """Answer a pull as the server does: from the place on, or from the first message."""
        cursor = session.cursors["g"]
        if cursor.behind:
            later = [m for m in self.stored if msgids.pack(m.msgid) > (cursor.msgid or 0)]
            page, more = later[:count], count < len(later)
            events, _ = self.group.pulled(
                cursor, PullResult(cursor.msgid or 0, 0, len(self.stored), page, more), MessagePage(page, more)
            )
            self.take(events)

    def check(self) -> None:
        """Every session is in one cursor of the group, and no two that have caught up are at the same place."""
        placed = [(session, cursor) for cursor in self.group for session in self.group.sessions(cursor)]
        assert sorted(id(session) for session, _ in placed) == sorted(map(id, self.sessions))
        assert all(session.cursors["g"] is cursor for session, cursor in placed)
        points = [(cursor.msgid, cursor.seq) for cursor in self.group if not cursor.behind]
        assert len(points) == len(set(points))


@pytest.mark.parametrize("most", [2, 1000])
@pytest.mark.parametrize("seed", range(60))
def test_sessions_that_share_a_cursor_are_handed_every_message_once_and_in_order(
    seed: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(fanout, "SESSIONS_PER_PULL", most)
    story = Story(seed)
    steps = [story.send, story.hear, story.send, story.hear, story.lose, story.pull, story.pull]
    # When
    for _ in range(120):
        story.dice.choice([*steps, story.come, story.go, story.fall_behind])()
        story.check()
    while story.in_flight:
        story.hear()
    for cursor in story.group:
        story.group.fall_behind(cursor)
    assert all(len(story.group.sessions(cursor)) <= most for cursor in story.group)
    for session in story.sessions:
        while session.cursors["g"].behind:
            story.catch_up(session, 3)
    # Then
    assert all(story.got[session] == [m.seq for m in story.stored] for session in story.sessions)
    assert len({id(session.cursors["g"]) for session in story.sessions}) <= 1
    for session in list(story.sessions):
        story.group.remove(session)
    assert story.group.is_empty


def caught_up(count: int) -> tuple[GroupSubscribers, list[Session]]:
    group, sessions = GroupSubscribers("g"), [Session(f"u{number}") for number in range(count)]
    for session in sessions:
        group.add(session, ResumePoint(0))
    for cursor in group:
        group.pulled(cursor, PullResult(0, 0, 0, []), MessagePage([], more=False))
    return group, sessions


def test_one_event_is_for_all_sessions_at_one_point() -> None:
    # Given more sessions that have caught up than one pull is for
    group, sessions = caught_up(2500)

    # When messages come
    first, _ = group.pushed(message(1), packed(1))
    second, _ = group.pushed(message(2), packed(2))

    # Then it is one event each time, for the same audience
    assert [set(event.sessions) for event in first] == [set(sessions)]
    assert first[0].recipients is second[0].recipients


def test_sessions_that_fall_behind_together_pull_together_but_not_too_many() -> None:
    group, sessions = caught_up(2500)

    _, behind = group.pushed(message(3), packed(3))

    assert [len(group.sessions(cursor)) for cursor in behind] == [1000, 1000, 500]
    assert {session for cursor in behind for session in group.sessions(cursor)} == set(sessions)


def test_a_session_at_the_offset_has_a_cursor_of_its_own() -> None:
    group, (one, two, _) = caught_up(3)
    for session in (one, two):
        group.remove(session)
        group.add(session, None)

    assert one.cursors["g"] is not two.cursors["g"]
    assert group.remove(one) is None


def test_acks_are_due_by_count_or_by_time_and_name_the_newest_of_each_group() -> None:
    # Given two who have received two messages of one group, and one of another
    buffer, both = AckBuffer(3, 1.0), Recipients([Session("ann"), Session("bob"), Session("bob")])
    for gid, seq in (("g", 1), ("g", 2), ("h", 7)):
        buffer.received(gid, both, point(seq), 10.0)
    assert buffer.take_due(10.9) == []
    assert buffer.next_due() == 11.0

    # When a third one comes
    buffer.received("g", both, point(3), 10.5)

    # Then that group is due at once, the other one in time
    assert targets(buffer.take_due(10.5)) == {"g": [AckTarget(packed(3), ("ann", "bob"), 3)]}
    assert targets(buffer.take_due(11.0)) == {"h": [AckTarget(packed(7), ("ann", "bob"), 7)]}
    assert buffer.next_due() == float("inf")


def test_acks_of_one_message_are_one_target() -> None:
    # Given clients that report one by one what they have received; one of them names its seq
    buffer = AckBuffer(10, 1.0)
    for number, uid in enumerate(("ann", "bob", "bob", "cy")):
        buffer.received("g", Session(uid).as_recipients, point(4) if number == 2 else ResumePoint(packed(4)), 0.0)
    buffer.received("g", Session("dan").as_recipients, point(3), 0.0)

    assert targets(buffer.take_due(1.0)) == {
        "g": [AckTarget(packed(4), ("ann", "bob", "cy"), 4), AckTarget(packed(3), ("dan",), 3)]
    }


def test_acks_that_are_due_soon_go_with_those_that_are_due() -> None:
    buffer = AckBuffer(10, 1.0)
    for number, at in enumerate((0.0, 0.1, 0.24, 0.26)):
        buffer.received("g", Session(f"u{number}").as_recipients, point(4), at)

    assert buffer.take_due(0.99) == []
    assert targets(buffer.take_due(1.0)) == {"g": [AckTarget(packed(4), ("u0", "u1", "u2"), 4)]}
    assert targets(buffer.take_due(1.26)) == {"g": [AckTarget(packed(4), ("u3",), 4)]}


def test_an_older_message_moves_no_ack_back() -> None:
    buffer, ann = AckBuffer(10, 1.0), Session("ann")
    for seq in (4, 2):
        buffer.received("g", ann.as_recipients, point(seq), 0.0)

    assert targets(buffer.take_due(1.0)) == {"g": [AckTarget(packed(4), ("ann",), 4)]}


def test_a_call_acks_for_a_bounded_number_of_members() -> None:
    # Given acks of a few, of many, and of more than one call takes
    def named(count: int) -> tuple[str, ...]:
        return tuple(f"u{number}" for number in range(count))

    acks = [
        AckTarget(1, named(3), 1),
        AckTarget(2, named(UIDS_PER_CALL - 3), 2),
        AckTarget(3, named(2 * UIDS_PER_CALL + 1), 3),
    ]

    # When
    parts = list(split_targets(acks))

    # Then all are there, in order, in as few calls as can be
    assert [sum(len(target.uids) for target in part) for part in parts] == [*[UIDS_PER_CALL] * 3, 1]
    flat = [(target.msgid, uid) for part in parts for target in part for uid in target.uids]
    assert flat == [(target.msgid, uid) for target in acks for uid in target.uids]


def owe(buffer: AckBuffer, *sessions: Session) -> None:
    """These owe an ack of one group, and one of a full batch of another."""
    both = Recipients(sessions)
    for gid, seq in (("g", 1), ("h", 1), ("h", 2)):
        buffer.received(gid, both, point(seq), 0.0)
    for session in sessions:
        session.resume_points = {"g": point(1), "h": point(2)}


def test_a_session_that_ends_takes_its_acks_with_it() -> None:
    # Given two who owe acks
    ann, bob = Session("ann"), Session("bob")
    buffer = AckBuffer(2, 1.0)
    owe(buffer, ann, bob)

    # When one ends
    ann_targets = targets(buffer.take_of([ann]))

    # Then the other one's acks are still due, also with what comes next
    assert ann_targets == {"g": [AckTarget(packed(1), ("ann",), 1)], "h": [AckTarget(packed(2), ("ann",), 2)]}
    buffer.received("g", Recipients([bob]), point(2), 0.5)
    assert targets(buffer.take_due(1.5)) == {
        "g": [AckTarget(packed(1), ("bob",), 1), AckTarget(packed(2), ("bob",), 2)],
        "h": [AckTarget(packed(2), ("bob",), 2)],
    }


def test_acks_of_a_session_can_be_forgotten_and_be_due_again() -> None:
    ann, bob = Session("ann"), Session("bob")
    buffer = AckBuffer(2, 1.0)
    owe(buffer, ann, bob)
    buffer.received("g", ann.as_recipients, point(1), 0.0)

    buffer.forget([ann], "g")
    buffer.forget([bob])
    buffer.received("g", ann.as_recipients, point(2), 0.0)

    assert targets(buffer.take_due(1.0)) == {
        "h": [AckTarget(packed(2), ("ann",), 2)],
        "g": [AckTarget(packed(2), ("ann",), 2)],
    }


def test_acks_that_could_not_be_sent_are_due_again() -> None:
    buffer, waiting = AckBuffer(10, 1.0), UnackedMessages("g", Recipients([Session("ann")]), point(4), 5.0)
    buffer.requeue([waiting])
    assert buffer.next_due() == 0.0
    assert buffer.take_due(0.0) == [waiting]


def test_an_end_that_failed_may_be_tried_again_and_be_given_up() -> None:
    # Given one who could not end, for their acks could not be sent
    ann = Session("ann")
    buffer = AckBuffer(2, 1.0)
    owe(buffer, ann)
    buffer.requeue(buffer.take_of([ann]))

    # When that is tried again, then the same is owed
    again = buffer.take_of([ann])
    assert targets(again) == {"g": [AckTarget(packed(1), ("ann",), 1)], "h": [AckTarget(packed(2), ("ann",), 2)]}

    # And when that is in vain, too, and is given up, then nothing is
    buffer.requeue(again)
    buffer.forget([ann])
    assert not any(targets(buffer.take_due(5.0)).values())
