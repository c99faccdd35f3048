"""The ack buffer: what was received is acked in few calls, and no ack is lost."""

import math
import random
from collections import defaultdict

import pytest

from imcore.gateway.acks import MOST_MESSAGES, AckBuffer, GroupAcks
from imcore.gateway.fanout import Recipients, Session
from imcore.streams.calls.message_calls import DeliveryTarget


def received(buffer: AckBuffer, recipients: Recipients, msgid: int, now: float = 0.0, *, gid: str = "g") -> None:
    buffer.received(gid, recipients, msgid, msgid + 1000, now)


def alone(uid: str) -> Recipients:
    return Session(uid).as_recipients


def target(msgid: int, *uids: str) -> DeliveryTarget:
    return DeliveryTarget(msgid, uids, seq=msgid + 1000)


def targets(acks: list[GroupAcks]) -> dict[str, list[DeliveryTarget]]:
    assert len({group.gid for group in acks}) == len(acks), "the acks of a group travel together"
    return {group.gid: sorted(group.targets()) for group in acks if group.targets()}


def test_acks_are_due_by_count_or_by_time_and_name_the_newest_of_each_group() -> None:
    # Given two who have received two messages of one group, and one of another
    buffer, both = AckBuffer(3, 1.0), Recipients([Session("ann"), Session("bob"), Session("bob")])
    for gid, msgid in (("g", 1), ("g", 2), ("h", 7)):
        received(buffer, both, msgid, 10.0, gid=gid)
    assert buffer.take_due(10.9) == []
    assert buffer.next_due() == 11.0

    # When a third one comes
    received(buffer, both, 3, 10.5)

    # Then that group is due at once, the other one in time
    assert buffer.next_due() <= 10.5
    assert targets(buffer.take_due(10.5)) == {"g": [target(3, "ann", "bob")]}
    assert targets(buffer.take_due(11.0)) == {"h": [target(7, "ann", "bob")]}
    assert buffer.next_due() == math.inf


def test_acks_of_one_message_are_one_target() -> None:
    # Given clients that report one by one what they have received; one of them names its seq
    buffer = AckBuffer(10, 1.0)
    for number, uid in enumerate(("ann", "bob", "bob", "cy")):
        buffer.received("g", alone(uid), 4, 1004 if number == 2 else None, 0.0)
    received(buffer, alone("dan"), 3)

    assert targets(buffer.take_due(1.0)) == {"g": [target(3, "dan"), target(4, "ann", "bob", "cy")]}


def test_acks_that_are_due_by_number_wait_for_those_of_other_clients() -> None:
    # Given acks per message, and clients that say so one after the other
    buffer = AckBuffer(1, 1.0, fold_s=0.01)
    received(buffer, alone("ann"), 4, 5.0)
    received(buffer, alone("bob"), 4, 5.004)
    assert buffer.next_due() == 5.01
    assert buffer.take_due(5.009) == []

    received(buffer, alone("cy"), 5, 5.009)

    assert targets(buffer.take_due(5.01)) == {"g": [target(4, "ann", "bob"), target(5, "cy")]}
    assert buffer.next_due() == math.inf


def test_acks_of_a_group_are_due_with_the_first_that_is() -> None:
    buffer = AckBuffer(3, 1.0)
    early, late = alone("ann"), alone("bob")
    received(buffer, late, 1)
    for msgid in (1, 2, 3):
        received(buffer, early, msgid)

    assert targets(buffer.take_due(0.0)) == {"g": [target(1, "bob"), target(3, "ann")]}


def test_groups_that_are_due_soon_go_with_those_that_are_due() -> None:
    buffer = AckBuffer(10, 1.0)
    for number, at in enumerate((0.0, 0.1, 0.24, 0.26)):
        received(buffer, alone("ann"), 4, at, gid=f"g{number}")

    assert buffer.take_due(0.99) == []
    assert targets(buffer.take_due(1.0)) == {f"g{number}": [target(4, "ann")] for number in range(3)}
    assert targets(buffer.take_due(1.26)) == {"g3": [target(4, "ann")]}


def test_an_older_message_moves_no_ack_back() -> None:
    buffer, ann = AckBuffer(10, 1.0), alone("ann")
    for msgid in (4, 2):
        received(buffer, ann, msgid)

    assert targets(buffer.take_due(1.0)) == {"g": [target(4, "ann")]}


def test_the_messages_that_wait_are_bounded() -> None:
    buffer, ann = AckBuffer(10**9, 3600.0), alone("ann")
    for msgid in range(1, MOST_MESSAGES):
        received(buffer, ann, msgid)
    assert buffer.take_due(0.0) == []

    received(buffer, ann, MOST_MESSAGES)

    assert targets(buffer.take_due(0.0)) == {"g": [target(MOST_MESSAGES, "ann")]}


def owe(buffer: AckBuffer, *sessions: Session) -> None:
    """These owe an ack of one group, and one of a full batch of another."""
    both = Recipients(sessions)
    for gid, msgid in (("g", 1), ("h", 1), ("h", 2)):
        received(buffer, both, msgid, gid=gid)
    for session in sessions:
        session.resume_points = {"g": None, "h": None}


def test_a_session_that_ends_takes_its_acks_with_it() -> None:
    # Given two who owe acks
    ann, bob = Session("ann"), Session("bob")
    buffer = AckBuffer(2, 1.0)
    owe(buffer, ann, bob)

    # When one ends
    ann_targets = targets(buffer.take_of([ann]))

    # Then the other one's acks are still due, also with what comes next
    assert ann_targets == {"g": [target(1, "ann")], "h": [target(2, "ann")]}
    received(buffer, bob.as_recipients, 2, 0.5)
    assert targets(buffer.take_due(1.5)) == {"g": [target(1, "bob"), target(2, "bob")], "h": [target(2, "bob")]}


def test_acks_of_a_session_can_be_forgotten_and_be_due_again() -> None:
    ann, bob = Session("ann"), Session("bob")
    buffer = AckBuffer(2, 1.0)
    owe(buffer, ann, bob)
    received(buffer, ann.as_recipients, 1)

    buffer.forget([ann], "g")
    buffer.forget([bob])
    received(buffer, ann.as_recipients, 2)

    assert targets(buffer.take_due(1.0)) == {"h": [target(2, "ann")], "g": [target(2, "ann")]}


def test_acks_that_could_not_be_sent_are_due_again_with_those_since() -> None:
    # Given acks that failed, and one that waits alone until a time
    buffer, ann = AckBuffer(10, 1.0), alone("ann")
    for gid in ("g", "h"):
        received(buffer, ann, 4, gid=gid)
    acks = {group.gid: group for group in buffer.take_due(1.0)}
    buffer.requeue([acks["g"]])
    buffer.requeue([acks["h"]], 3.0)
    assert buffer.next_due() == 0.0

    # When more is received
    received(buffer, ann, 5, 1.0)
    received(buffer, ann, 5, 1.0, gid="h")

    # Then each is sent once, with the newest
    assert targets(buffer.take_due(2.0)) == {"g": [target(5, "ann")], "h": [target(5, "ann")]}
    assert targets(buffer.take_due(3.0)) == {"h": [target(4, "ann")]}
    assert buffer.next_due() == math.inf


def test_an_end_that_failed_may_be_tried_again_and_be_given_up() -> None:
    # Given one who could not end, for their acks could not be sent
    ann = Session("ann")
    buffer = AckBuffer(2, 1.0)
    owe(buffer, ann)
    buffer.requeue(buffer.take_of([ann]))

    # When that is tried again, then the same is owed
    again = buffer.take_of([ann])
    assert targets(again) == {"g": [target(1, "ann")], "h": [target(2, "ann")]}

    # And when that is in vain, too, and is given up, then nothing is
    buffer.requeue(again)
    buffer.forget([ann])
    assert targets(buffer.take_due(5.0)) == {}


def test_a_refused_message_is_replaced_by_the_one_before() -> None:
    # Given one whose newest is no message, one who has only that, one whose newest has to wait, and one who is done
    buffer = AckBuffer(10, 1.0)
    ann, bob, cy, dan = map(alone, ("ann", "bob", "cy", "dan"))
    for recipients, msgids in ((ann, (1, 2, 9)), (bob, (9,)), (cy, (1, 5)), (dan, (1, 6))):
        for msgid in msgids:
            received(buffer, recipients, msgid)
    [group] = buffer.take_due(1.0)

    again = group.again({5}, {9})

    assert targets([again]) == {"g": [target(2, "ann"), target(5, "cy")]}
    before = again.again((), {2, 5})
    assert [each._replace(uids=set(each.uids)) for each in before.targets()] == [target(1)._replace(uids={"ann", "cy"})]


class Story:
    """Sessions that share recipients or not receive and end, while calls fail. The server knows no odd message."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.buffer = AckBuffer(self.dice.choice([1, 2, 5]), 1.0, fold_s=self.dice.choice([0.0, 0.01]))
        self.sessions = [Session(f"u{number}") for number in range(6)]
        for session in self.sessions:
            session.resume_points = {"g": None, "h": None}
        self.received: dict[tuple[str, str], int] = defaultdict(int)
        self.acked: dict[tuple[str, str], int] = defaultdict(int)
        self.now = 0.0

    def receive(self, sessions: list[Session]) -> None:
        gid, msgid = self.dice.choice("gh"), self.dice.randrange(1, 100)
        recipients = Recipients(sessions) if len(sessions) > 1 else sessions[0].as_recipients
        received(self.buffer, recipients, msgid, self.now, gid=gid)
        for session in sessions if msgid % 2 == 0 else ():
            self.received[gid, session.uid] = max(self.received[gid, session.uid], msgid)

    def one_receives(self) -> None:
        if self.sessions:
            self.receive([self.dice.choice(self.sessions)])

    def some_receive(self) -> None:
        if len(self.sessions) > 2:
            self.receive(self.dice.sample(self.sessions, 3))

    def one_ends(self) -> None:
        if self.sessions and self.dice.random() < 0.1:
            self.send(self.buffer.take_of([self.sessions.pop()]))

    def acks_are_sent(self) -> None:
        self.send(self.buffer.take_due(self.now))

    def send(self, acks: list[GroupAcks]) -> None:
        for group in acks:
            if self.dice.random() < 0.3:
                self.buffer.requeue([group], self.dice.choice([0.0, self.now + 0.5]))
            else:
                self.answer(group)

    def answer(self, group: GroupAcks) -> None:
        refused = {target.msgid for target in group.targets() if target.msgid and target.msgid % 2}
        for target in group.targets():
            for uid in () if target.msgid in refused else target.uids:
                self.acked[group.gid, uid] = max(self.acked[group.gid, uid], target.msgid or 0)
        if refused:
            self.buffer.requeue([group.again((), refused)])


@pytest.mark.parametrize("seed", range(60))
def test_all_that_was_received_is_acked_whatever_fails(seed: int) -> None:
    # Given
    story = Story(seed)
    steps = [story.one_receives, story.one_receives, story.some_receive, story.one_ends, story.acks_are_sent]
    # When
    for _ in range(300):
        story.now += story.dice.choice([0.0, 0.005, 0.3])
        story.dice.choice(steps)()
    while story.buffer.next_due() < math.inf:
        story.now = max(story.now, story.buffer.next_due())
        story.acks_are_sent()
    # Then
    assert {key: msgid for key, msgid in story.acked.items() if msgid} == dict(story.received)
    assert not story.buffer._waiting


def test_deliveries_keep_since_when_nothing_is_missing_and_acks_take_them_out() -> None:
    # Given a client that has all up to 3, and after a gap all from 8 up to 9, and another one that has all up to 9
    buffer, ann, bob = AckBuffer(10, 1.0, kind="delivered"), alone("ann"), alone("bob")
    for recipients, msgid, since in ((ann, 2, 0), (ann, 3, 0), (ann, 9, 8), (bob, 9, 0)):
        buffer.received("g", recipients, msgid, msgid + 1000, 0.0, since)
    [deliveries] = buffer.take_due(1.0)
    assert sorted(deliveries.targets()) == [
        DeliveryTarget(3, ("ann",), 0, seq=1003),
        DeliveryTarget(9, ("ann",), 8, seq=1009),
        DeliveryTarget(9, ("bob",), 0, seq=1009),
    ]

    # When bob has read all of it, and ann some
    acks = AckBuffer(10, 1.0)
    received(acks, bob, 9)
    received(acks, ann, 3)
    taken = deliveries.take_read(acks.take_due(1.0)[0])

    # Then only what ann has not read is left, and the rest may come back
    assert deliveries.targets() == [DeliveryTarget(9, ("ann",), 8, seq=1009)]
    assert sorted(taken.targets()) == [
        DeliveryTarget(3, ("ann",), 0, seq=1003),
        DeliveryTarget(9, ("bob",), 0, seq=1009),
    ]
    assert taken.only({"bob"}).targets() == [DeliveryTarget(9, ("bob",), 0, seq=1009)]
