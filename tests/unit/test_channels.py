"""The channels of a gateway, against a server that makes changes later and confirms them later still."""

import random
from collections import deque

import pytest

from imcore.gateway import channels
from imcore.gateway.channels import ChannelOwner, Channels
from imcore.gateway.cursor import ResumePoint
from imcore.gateway.fanout import Session
from imcore.gateway.subscribers import GroupSubscribers
from imcore.streams.keys import Keyspace

SPACE = Keyspace(3)


class Server:
    """Has a subscription: it carries out commands in order, and confirms each when the test lets it."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.subscribed: set[str] = set()
        self.answers: deque[tuple[str, str]] = deque()
        self.most = 0

    def carry_out(self) -> None:
        changes = self.channels.changes()
        for channel in changes.drop:
            self.subscribed.discard(channel)
            self.answers.append(("drop", channel))
        for channel in changes.add:
            self.subscribed.add(channel)
            self.answers.append(("add", channel))
        self.most = max(self.most, len(self.answers))

    def answer(self) -> ChannelOwner | None:
        if not self.answers:
            return None
        kind, channel = self.answers.popleft()
        if kind == "drop":
            assert self.channels.dropped(channel)
            return None
        return self.channels.added(channel)

    def lose(self) -> None:
        self.subscribed.clear()
        self.answers.clear()
        self.channels.restart()

    def wanted_channels(self) -> set[str]:
        groups = {SPACE.group(subscribers.gid).channel for subscribers in self.channels.groups.values()}
        return groups | {each for uid in self.channels._inboxes for each in SPACE.inboxes(uid)}


class Story:
    """Sessions and groups that come and go, in any order with what the server does."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.channels = Channels(SPACE)
        self.channels.restart()
        self.server = Server(self.channels)
        self.sessions: list[Session] = []

    def come(self) -> None:
        self.sessions.append(Session(self.dice.choice("ab")))
        self.channels.open_inbox(self.sessions[-1])

    def go(self) -> None:
        if self.sessions:
            self.channels.close_inbox(self.sessions.pop(self.dice.randrange(len(self.sessions))))

    def open_or_close(self) -> None:
        gid = self.dice.choice("gh")
        if gid in self.channels.groups:
            self.channels.close_group(gid)
        else:
            self.channels.open_group(gid).add(Session("x"), ResumePoint(0))

    def carry_out(self) -> None:
        if self.channels.has_changes():
            self.server.carry_out()

    def answer(self) -> None:
        owner = self.server.answer()
        if isinstance(owner, GroupSubscribers):
            assert SPACE.group(owner.gid).channel in self.server.subscribed
        elif owner:
            assert self.server.subscribed.issuperset(SPACE.inboxes(owner.uid))

    def step(self) -> None:
        steps = [self.come, self.go, self.open_or_close, self.carry_out, self.answer, self.server.lose]
        self.dice.choices(steps, [6, 5, 6, 12, 27, 1])[0]()


@pytest.mark.parametrize("seed", range(50))
def test_every_wanted_channel_is_subscribed_whatever_comes_and_goes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "UNCONFIRMED_CHANGES", 5)
    story = Story(seed)
    channel_set, server = story.channels, story.server
    # When
    for _ in range(400):
        story.step()
    while channel_set.has_changes() or server.answers:
        story.carry_out()
        story.answer()
    # Then
    assert server.subscribed == server.wanted_channels()
    assert all(subscribers.is_subscribed for subscribers in channel_set.groups.values())
    assert all(inbox.is_subscribed for inbox in channel_set._inboxes.values())
    assert server.most <= 5
    assert [*channel_set._adding, *channel_set._dropping, *channel_set._to_add, *channel_set._to_drop] == []


def test_channels_of_ended_sessions_are_forgotten() -> None:
    channel_set = Channels(SPACE)
    channel_set.restart()
    server = Server(channel_set)
    for number in range(100):
        session = Session(f"once{number}")
        channel_set.open_inbox(session)
        server.carry_out()
        channel_set.close_inbox(session)
        server.carry_out()
        while server.answers:
            server.answer()

    assert not channel_set.owners
    assert [value for name, value in vars(channel_set).items() if name != "_space" and value] == []


def test_an_unwanted_unsubscription_is_noticed() -> None:
    channel_set = Channels(SPACE)
    subscribers = channel_set.open_group("g")
    channel = SPACE.group("g").channel
    channel_set.changes()
    assert channel_set.added(channel) is subscribers

    assert not channel_set.dropped(channel)
