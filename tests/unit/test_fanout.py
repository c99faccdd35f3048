"""Sessions that share a cursor: each gets what it would get alone."""

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest

from imcore import msgid as msgids
from imcore.gateway import subscribers
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import Event, Gap, NewMessage, Session
from imcore.gateway.subscribers import GroupSubscribers
from imcore.model.values import Message
from imcore.operations.queries import MessagePage
from imcore.streams.calls.message_calls import UIDS_PER_CALL, AckTarget, LeftOut, PullResult, split_targets

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
        self.paused: dict[Session, ResumePoint | None] = {}
        self.got: dict[Session, list[int]] = defaultdict(list)

    def send(self) -> None:
        self.stored.append(message(len(self.stored) + 1))
        self.in_flight.append(self.stored[-1])

    def take(self, events: Sequence[Event]) -> None:
        """Note what sessions were handed, and what was left out of it by name."""
        seqs = {each.msgid: each.seq for each in self.stored}
        for event in events:
            if isinstance(event, NewMessage):
                first = last = event.message.seq
            else:
                assert isinstance(event, Gap)
                first, last = seqs[event.from_msgid], seqs[event.to_msgid]
            for session in event.sessions:
                assert isinstance(event, NewMessage) or session.most is not None
                self.got[session] += range(first, last + 1)

    def hear(self) -> None:
        if self.in_flight:
            pushed = self.in_flight.pop(0)
            events, behind = self.group.pushed(msgids.pack(pushed.msgid), pushed, "")
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
            self.sessions.append(Session("u", self.dice.choice([None, None, 0, 1, 5])))
            self.group.add(self.sessions[-1], ResumePoint(0))

    def pause(self) -> None:
        if len(self.sessions) > 3:
            session = self.sessions.pop(self.dice.randrange(len(self.sessions)))
            self.paused[session] = self.group.remove(session)

    def resume(self) -> None:
        if self.paused:
            session, resume_point = self.paused.popitem()
            self.sessions.append(session)
            self.group.add(session, resume_point)

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
            assert cursor.most is None or {each.most for each in self.group.sessions(cursor)} == {cursor.most}
            start, left_out = cursor.msgid or 0, None
            later = [m for m in self.stored if msgids.pack(m.msgid) > start]
            if cursor.most is not None and len(later) > cursor.most:
                left_out = LeftOut(start, packed(later[0].seq))
                start = packed(later[-cursor.most - 1].seq)
                later = later[len(later) - cursor.most :]
            page, more = later[:count], count < len(later)
            pulled = PullResult(start, 0, len(self.stored), page, more, left_out=left_out)
            events, _ = self.group.pulled(cursor, pulled, MessagePage(page, more))
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
    monkeypatch.setattr(subscribers, "SESSIONS_PER_PULL", most)
    story = Story(seed)
    steps = [story.send, story.hear, story.send, story.hear, story.lose, story.pull, story.pull]
    # When
    for _ in range(120):
        story.dice.choice([*steps, story.come, story.go, story.fall_behind, story.pause, story.resume])()
        story.check()
    while story.paused:
        story.resume()
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
    first, _ = group.pushed(packed(1), message(1), "")
    second, _ = group.pushed(packed(2), message(2), "")

    # Then it is one event each time, for the same audience
    assert [set(event.sessions) for event in first] == [set(sessions)]
    assert first[0].recipients is second[0].recipients


def test_sessions_that_fall_behind_together_pull_together_but_not_too_many() -> None:
    group, sessions = caught_up(2500)

    _, behind = group.pushed(packed(3), message(3), "")

    assert [len(group.sessions(cursor)) for cursor in behind] == [1000, 1000, 500]
    assert {session for cursor in behind for session in group.sessions(cursor)} == set(sessions)


def test_a_session_at_the_offset_has_a_cursor_of_its_own() -> None:
    group, (one, two, _) = caught_up(3)
    for session in (one, two):
        group.remove(session)
        group.add(session, None)

    assert one.cursors["g"] is not two.cursors["g"]
    assert group.remove(one) is None


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
