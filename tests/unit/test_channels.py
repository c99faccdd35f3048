"""What a gateway listens to, against a server that carries out changes later and answers later still."""

import random
from collections import deque

import pytest

from imcore.gateway import channels
from imcore.gateway.channels import Channels, Inbox
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import GroupSubscribers, Session
from imcore.streams.keys import Keyspace

SPACE = Keyspace(3)


class Server:
    """Has a subscription, carries out what it is sent in order, and confirms it when it is asked to."""

    def __init__(self, asked: Channels) -> None:
        self.asked = asked
        self.listening: set[str] = set()
        self.answers: deque[tuple[str, str]] = deque()
        self.most = 0

    def carry_out(self) -> None:
        drop, add = self.asked.changes()
        for channel in drop:
            self.listening.discard(channel)
            self.answers.append(("drop", channel))
        for channel in add:
            self.listening.add(channel)
            self.answers.append(("add", channel))
        self.most = max(self.most, len(self.answers))

    def answer(self) -> Inbox | GroupSubscribers | None:
        if not self.answers:
            return None
        kind, channel = self.answers.popleft()
        if kind == "drop":
            assert self.asked.dropped(channel)
            return None
        return self.asked.added(channel)

    def lose(self) -> None:
        self.listening.clear()
        self.answers.clear()
        self.asked.begin_anew()

    def wanted(self) -> set[str]:
        rooms = {SPACE.group(room.gid).channel for room in self.asked.rooms()}
        return rooms | {each for uid in self.asked._inboxes for each in SPACE.inboxes(uid)}


class Story:
    """Sessions and rooms that come and go, in any order with what the server does."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.asked = Channels(SPACE)
        self.asked.begin_anew()
        self.server = Server(self.asked)
        self.sessions: list[Session] = []

    def come(self) -> None:
        self.sessions.append(Session(self.dice.choice("ab")))
        self.asked.open_inbox(self.sessions[-1])

    def go(self) -> None:
        if self.sessions:
            self.asked.close_inbox(self.sessions.pop(self.dice.randrange(len(self.sessions))))

    def open_or_close(self) -> None:
        gid = self.dice.choice("gh")
        room = self.asked.room(gid)
        if room:
            self.asked.close_room(room)
        else:
            self.asked.open_room(gid).enter(Session("x"), ResumePoint(0))

    def carry_out(self) -> None:
        if self.asked.has_changes():
            self.server.carry_out()

    def answer(self) -> None:
        of = self.server.answer()
        if isinstance(of, GroupSubscribers):
            assert SPACE.group(of.gid).channel in self.server.listening
        elif of:
            assert self.server.listening.issuperset(SPACE.inboxes(of.uid))

    def step(self) -> None:
        steps = [self.come, self.go, self.open_or_close, self.carry_out, self.answer, self.server.lose]
        self.dice.choices(steps, [6, 5, 6, 12, 27, 1])[0]()


@pytest.mark.parametrize("seed", range(50))
def test_what_stands_is_listened_to_whatever_comes_and_goes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MOST_UNDER_WAY", 5)
    story = Story(seed)
    asked, server = story.asked, story.server
    # When
    for _ in range(400):
        story.step()
    while asked.has_changes() or server.answers:
        story.carry_out()
        story.answer()
    # Then
    assert server.listening == server.wanted()
    assert all(room.stands for room in asked.rooms())
    assert all(inbox.stands for inbox in asked._inboxes.values())
    assert server.most <= 5
    assert [*asked._adding, *asked._dropping, *asked._to_add, *asked._to_drop] == []


def test_nothing_is_left_of_sessions_that_are_gone() -> None:
    asked = Channels(SPACE)
    asked.begin_anew()
    server = Server(asked)
    for number in range(100):
        session = Session(f"once{number}")
        asked.open_inbox(session)
        server.carry_out()
        asked.close_inbox(session)
        server.carry_out()
        while server.answers:
            server.answer()

    assert asked.is_empty
    assert [value for name, value in vars(asked).items() if name != "_space" and value] == []


def test_news_that_nobody_asked_for_is_known() -> None:
    asked = Channels(SPACE)
    room = asked.open_room("g")
    channel = SPACE.group("g").channel
    asked.changes()
    assert asked.added(channel) is room

    assert not asked.dropped(channel)
