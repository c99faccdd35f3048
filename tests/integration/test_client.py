"""A client with its local database on a real server: kept once, in order, sent once, whatever breaks."""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore import Chat
from imcore import msgid as msgids
from imcore.device import device as device_module
from imcore.device.device import Device
from imcore.device.local_database import PAGE, LocalDatabase, path_of
from imcore.device.own_tallies import OwnTallies
from imcore.errors import ConfigurationError, ImError, LocalDatabaseError, RedisUnavailable
from imcore.model.direct import gid_of
from imcore.model.values import Draft, Message, MessageTally, Receipt, Tally
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from imcore.streams.keys import CONFIG
from imcore.util.backoff import LONGEST_WAIT_S
from imcore.workers.persist import Persist
from imcore.workers.receipts import ReceiptsWorker
from tests.deadline import wait_until
from tests.servers import start_valkey

MOST_S = 20.0
SEEDS = int(os.environ.get("IM_LIVE_SEEDS", "2"))
"""How many random histories are played; for a long run set IM_LIVE_SEEDS."""


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return replace(Settings.from_env({}, redis_url=valkey, data_dir=str(tmp_path)), receipt_window_ms=0, block_ms=10)


@pytest.fixture
def chat(settings: Settings) -> Iterator[Chat]:
    with Chat.connect(settings=settings) as chat:
        yield chat


@pytest.fixture
def other(settings: Settings) -> Iterator[Chat]:
    """Another process's connection."""
    with Chat.connect(settings=settings) as chat:
        yield chat


@pytest.fixture
def local(settings: Settings) -> Iterator[LocalDatabase]:
    with LocalDatabase(path_of(settings.data_dir, "bob"), "bob", exclusive=True) as local:
        yield local


@pytest.fixture
def bob(chat: Chat, local: LocalDatabase) -> Device:
    return Device(chat, "bob", local)


def say(chat: Chat, *texts: str, gid: str = "team", sender: str = "ann") -> list[str]:
    sent = chat.system.client.call(
        message_calls.send(chat.system.client.space, gid, [Draft(sender, text) for text in texts], 1000)
    )
    return [each.msgid for each in sent if isinstance(each, message_calls.SendResult)]


def listen(
    client: Device, until: Callable[[], object] | int, into: list[Message | Receipt] | None = None, **options: Any
) -> list[Message | Receipt]:
    """Run a session until the condition holds, as seen between two polls, or until so many messages were yielded."""
    give_up = time.monotonic() + MOST_S
    found = [] if into is None else into

    def stopping() -> bool:
        assert time.monotonic() < give_up, f"not so within {MOST_S} s"
        return len(said(found)) >= until if isinstance(until, int) else bool(until())

    for event in client.live(stopping, **options):
        found.append(event)
    return found


def said(found: list[Message | Receipt]) -> list[str]:
    """The contents of the messages among what a session has yielded."""
    return [each.content for each in found if isinstance(each, Message)]


def texts(local: LocalDatabase, gid: str = "team") -> list[str]:
    return [line.content for line in local.log(gid)]


def states(local: LocalDatabase, gid: str = "team") -> list[str | None]:
    return [line.state for line in local.log(gid)]


def tell(chat: Chat) -> None:
    """Have the worker `receipts` tell what is there."""
    worker = ReceiptsWorker(chat.system.client, chat.system.database, chat.system.settings)
    while not worker.drained():
        worker.step()
    worker.close()


def store(chat: Chat) -> None:
    """Have the worker `persist` store what is there."""
    chat.system.database.upgrade()
    worker = Persist(chat.system.client, chat.system.database, chat.system.settings)
    while not worker.drained():
        worker.step()
    worker.close()


# Receiving.


def test_a_session_keeps_what_it_yields(bob: Device, local: LocalDatabase, chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "1", "2")
    found = listen(bob, lambda: len(texts(local)) == 2)
    assert [each.content for each in found if isinstance(each, Message)] == texts(local) == ["1", "2"]
    assert chat.pull("bob") == []


def test_a_session_killed_before_it_acked_yields_and_acks_when_it_comes_back(
    bob: Device, local: LocalDatabase, chat: Chat
) -> None:
    # Given one that had three messages on its disk, and had yielded one of them
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3")
    with closing(bob.live(lambda: False)) as events:
        next(events)
    assert texts(local) == ["1", "2", "3"]
    assert len(chat.pull("bob")) == 3
    # When
    found = listen(bob, lambda: chat.pull("bob") == [], ack_interval_s=0.05)
    # Then
    assert said(found) == texts(local) == ["1", "2", "3"]
    tell(chat)
    assert [(each.msgid, each.read) for each in chat.receipts("ann")] == [(each, 1) for each in sent]


def test_what_is_acked_was_yielded_whatever_the_local_database_has(
    bob: Device, local: LocalDatabase, chat: Chat
) -> None:
    # Given a login, and a session that only looked
    for gid in ("team", "home"):
        chat.create_group(gid, ["ann", "bob"])
        say(chat, "1", "2", gid=gid)
    bob.sync()
    assert said(listen(bob, 4, acks="off")) == ["1", "2"] * 2
    assert {each.unread for each in chat.unread("bob")} == {2}
    # When
    found = listen(bob, lambda: {each.unread for each in chat.unread("bob")} == {0}, ack_every=1)
    # Then
    assert said(found) == ["1", "2"] * 2
    assert texts(local) == texts(local, "home") == ["1", "2"]


def test_what_could_not_be_shown_is_not_acked(bob: Device, chat: Chat) -> None:
    # Given a reader that goes away after the first line
    chat.create_group("team", ["ann", "bob"])
    say(chat, "1", "2", "3")
    with closing(bob.live(lambda: False, ack_every=1)) as events:
        next(events)
    # Then
    assert [each.content for each in chat.pull("bob")] == ["1", "2", "3"]


def test_own_messages_are_yielded_whoever_has_sent_them(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat
) -> None:
    # Given bob, who is live, and something of his that waits
    chat.create_group("team", ["ann", "bob"])
    bob.queue("waited", gid="team")
    bob.queue("psst", to_uid="ann")

    def meanwhile() -> bool:
        if not sent and not local.waiting():
            sent.append(chat.send("team", "of this device", sender_uid="bob"))
            bob.keep([sent[0]])
            sent.append(other.send("team", "of another one", sender_uid="bob"))
        return len(said(found)) == 4

    # When
    sent: list[Message] = []
    found: list[Message | Receipt] = []
    listen(bob, meanwhile, found)
    # Then
    assert sorted(said(found)) == sorted(["waited", "psst", "of this device", "of another one"])
    assert [text for text in said(found) if text != "psst"] == texts(local)


# A second device.


@pytest.fixture
def elsewhere(settings: Settings) -> Iterator[LocalDatabase]:
    """Bob's local database on another device."""
    with LocalDatabase(settings.data_dir / "elsewhere", "bob") as local:
        yield local


@pytest.mark.parametrize("by", ["sync", "live"])
def test_another_device_takes_nothing_from_one_that_was_used_before(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat, by: str
) -> None:
    # Given a device that was used, while nothing came
    for gid in ("team", "home"):
        chat.create_group(gid, ["ann", "bob"])
        say(chat, "long ago", gid=gid)
        chat.ack("bob", gid)
    bob.sync()
    # When another one receives, acks and sends, in groups old and new
    for gid in ("team", "new"):
        other.create_group(gid, ["ann", "bob"])
        say(other, "1", gid=gid)
        other.ack("bob", gid)
        other.send(gid, "2", sender_uid="bob")
    first = other.send_direct("ann", "hi", sender_uid="bob")
    # Then
    if by == "sync":
        bob.sync()
    else:
        found = listen(bob, 5)
        assert sorted(said(found)) == ["1", "1", "2", "2", "hi"]
    assert [texts(local, gid) for gid in ("team", "new", "home", first.gid)] == [["1", "2"], ["1", "2"], [], ["hi"]]


def test_a_fresh_device_begins_at_the_offset(bob: Device, local: LocalDatabase, chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "long ago")
    chat.ack("bob", "team")
    say(chat, "1")
    bob.keep([chat.send("team", "mine", sender_uid="bob")])
    bob.sync()
    assert texts(local) == ["1", "mine"]


def test_who_was_never_in_a_group_and_then_is_gets_it_from_the_join_on(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat
) -> None:
    chat.create_group("elsewhere", ["ann"])
    bob.sync()
    other.create_group("team", ["ann", "bob"])
    say(other, "1")
    other.ack("bob", "team")
    bob.sync()
    assert texts(local) == ["1"]


def test_every_device_has_the_tallies_of_the_server(
    bob: Device, local: LocalDatabase, elsewhere: LocalDatabase, chat: Chat, other: Chat
) -> None:
    # Given two devices with the same messages
    chat.create_group("team", ["ann", "bob", "cyd"])
    mine = [chat.send("team", str(number), sender_uid="bob") for number in range(3)]
    for device in (local, elsewhere):
        device.keep(mine)
    # When one of them is told of what was read, and confirms it
    chat.ack("ann", "team", mine[1].msgid)
    tell(chat)
    listen(bob, lambda: states(local) == ["read 1/2", "read 1/2", "stored"] and not other.receipts("bob"))
    chat.ack("cyd", "team", mine[0].msgid)
    tell(chat)
    chat.confirm_receipts("bob", chat.receipts("bob"))
    # Then the other one knows it too, at its login, and so does the first in its next session
    Device(other, "bob", elsewhere).sync()
    assert states(elsewhere) == ["read by all", "read 1/2", "stored"]
    listen(bob, lambda: states(local) == states(elsewhere))


def test_own_messages_that_come_with_their_receipts_long_confirmed_are_asked_for(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given what another device has sent, and been told of, since this one was used
    chat.create_group("team", ["ann", "bob"])
    bob.sync()
    say(other, *map(str, range(3)), sender="bob")
    other.ack("ann", "team")
    tell(other)
    other.confirm_receipts("bob", other.receipts("bob"))
    # When they come after all that was here before was asked for
    monkeypatch.setattr(OwnTallies, "step", lambda tallies: setattr(tallies, "done", True))
    listen(bob, 3)
    # Then
    assert states(local) == ["read by all"] * 3


def test_tallies_are_asked_for_by_the_page(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    bob.sync()
    sent = say(chat, *map(str, range(2 * PAGE)), sender="bob")
    bob.sync()
    local.keep([Tally("team", sent[-1], 1, 0)])
    asked: list[int] = []
    tallies = chat.tallies

    def ask(gid: str, msgids: list[str]) -> list[Tally]:
        asked.append(len(msgids))
        return tallies(gid, msgids)

    monkeypatch.setattr(bob._tallies, "_fetch", ask)
    # When
    chat.ack("ann", "team")
    for _ in range(2):
        bob.sync()
    # Then
    assert asked == [PAGE, PAGE - 1]
    assert set(states(local)) == {"read by all"}


def test_what_the_server_has_lost_or_cannot_reach_does_not_hide_the_other_tallies(
    bob: Device, local: LocalDatabase, chat: Chat
) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    kept = [chat.send("team", str(number), sender_uid="bob") for number in range(3)]
    lost = replace(kept[0], msgid="1767225600000-0", content="lost")
    for message in (lost, *kept, replace(lost, gid="gone")):
        bob.keep([message])
    # When
    chat.ack("ann", "team")
    bob.sync()
    # Then
    assert texts(local) == ["lost", "0", "1", "2"]
    assert states(local) == ["stored", *["read by all"] * 3]


def test_a_reconnect_brings_the_tallies_that_were_told_meanwhile(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat
) -> None:
    # Given bob, who is live
    chat.create_group("team", ["ann", "bob"])
    bob.keep([chat.send("team", "hi", sender_uid="bob")])
    told: list[int] = []

    def meanwhile() -> bool:
        if not told and other.system.client.driver.client_list(_type="pubsub"):
            # When it was read, told and confirmed while his connection was lost
            other.ack("ann", "team")
            tell(other)
            other.confirm_receipts("bob", other.receipts("bob"))
            told.append(other.system.client.driver.client_kill_filter(_type="pubsub"))
        return states(local) == ["read by all"]

    # Then
    listen(bob, meanwhile)


@pytest.mark.parametrize("looks", range(10))
def test_a_session_that_is_to_end_is_over_and_has_acked_what_it_yielded(
    bob: Device, chat: Chat, other: Chat, looks: int
) -> None:
    # Given one that is asked to end the so many-th time that it looks whether it is
    chat.create_group("team", ["ann", "bob"])
    say(other, "hi")
    answers = iter([False] * looks)
    # When
    found = list(bob.live(lambda: next(answers, True)))
    # Then
    assert [member.online for member in other.members("team")] == [False, False]
    assert [position.unread for position in other.unread("bob")] == [1 - len(found)]


# Whose data it is.


def test_a_server_that_comes_back_with_other_data_ends_the_session(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat
) -> None:
    # Given a session, and a message that it has not acked
    chat.create_group("team", ["ann", "bob"])
    changed: list[int] = []

    def meanwhile() -> bool:
        if not changed and other.system.client.driver.client_list(_type="pubsub"):
            other.system.client.driver.hset(CONFIG, "dataset", "another")
            changed.append(other.system.client.driver.client_kill_filter(_type="pubsub"))
            say(other, "of another world")
        return False

    # When
    with pytest.raises(LocalDatabaseError, match="was made with other data"):
        listen(bob, meanwhile)
    # Then
    assert len(chat.pull("bob")) == 1


def test_the_first_server_with_data_is_the_one(bob: Device, local: LocalDatabase, chat: Chat) -> None:
    bob.queue("written before there was anything", to_uid="ann")
    assert [message.content for message in bob.flush().sent] == ["written before there was anything"]
    chat.system.client.driver.hset(CONFIG, "dataset", "another")
    with pytest.raises(LocalDatabaseError, match="was made with other data"):
        Device(chat, "bob", local).sync()


def test_an_outbox_that_was_refused_is_tried_less_often_and_goes_out_soon_after(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "first")
    redis: Any = chat.system.client.driver
    monkeypatch.setattr(device_module, "_POLL_S", 0.01)
    began: list[float] = []
    refused: list[int] = []

    def is_sent() -> bool:
        if began and not refused and time.monotonic() - began[0] > 0.5:
            refused.append(redis.info("errorstats")["errorstat_NOREPLICAS"]["count"])
            redis.config_set("min-replicas-to-write", 0)
        return "stored" in states(local)

    # Given a message that is written in the midst of a session, when the server takes no writes for a while
    try:
        for _ in bob.live(is_sent, acks="off"):
            bob.queue("hi", gid="team")
            redis.config_resetstat()
            redis.config_set("min-replicas-to-write", 1)
            began.append(time.monotonic())
    finally:
        redis.config_set("min-replicas-to-write", 0)

    # Then it was not tried at every turn, and went out soon after
    assert 0 < refused[0] < 10
    assert time.monotonic() - began[0] < 0.5 + LONGEST_WAIT_S
    assert sum("the outbox waits" in message for message in caplog.messages) == 1


def test_a_server_that_has_lost_its_data_is_not_asked_to_take_the_outbox(
    bob: Device, local: LocalDatabase, chat: Chat
) -> None:
    chat.create_group("team", ["ann", "bob"])
    bob.sync()
    bob.queue("hi", gid="team")
    chat.system.client.driver.flushall()
    with pytest.raises(LocalDatabaseError, match="im rebuild"):
        Device(chat, "bob", local).flush()
    assert states(local) == ["waiting"]


# At a login.


def test_a_login_brings_everything_by_the_page(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more than a page, some of it trimmed, and receipts
    chat.create_group("team", ["ann", "bob"])
    own = say(chat, "mine", sender="bob")
    chat.ack("ann", "team")
    sent = say(chat, *(str(number) for number in range(1200)))
    store(chat)
    tell(chat)
    chat.system.client.call(message_calls.trim(chat.system.client.space, "team", msgids.pack(sent[700])))
    local.keep([chat.send("team", "mine too", sender_uid="bob")])
    pages: list[int] = []
    keep = local.keep

    def count(items: Iterable[Message | Receipt], *places: Any) -> None:
        found = list(items)
        pages.append(len(found))
        keep(found, *places)

    monkeypatch.setattr(local, "keep", count)
    # When
    bob.sync()
    bob.sync()
    # Then
    assert max(pages) == PAGE
    assert texts(local) == [*(str(number) for number in range(1200)), "mine too"]
    assert [(each.msgid, each.read) for each in chat.receipts("bob")] == [(own[0], 1)]
    assert chat.unread("bob")[0].unread == 1200


def test_a_login_passes_over_a_group_that_is_left_meanwhile(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gid in ("a", "team"):
        chat.create_group(gid, ["ann", "bob"])
        say(chat, "hi", gid=gid)
    groups_of = chat.groups_of

    def then_leaves(uid: str) -> list[str]:
        found = groups_of(uid)
        other.remove_members("a", ["bob"])
        return found

    monkeypatch.setattr(chat, "groups_of", then_leaves)
    bob.sync()
    assert texts(local) == ["hi"]


def test_who_was_away_keeps_the_same_tallies_as_who_was_there(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat, settings: Settings
) -> None:
    # Given ann who is there, bob who is not
    uids = [f"u{number}" for number in range(7)]
    chat.create_group("team", ["ann", "bob", *uids])
    with LocalDatabase(path_of(settings.data_dir, "ann"), "ann") as hers:
        ann = Device(other, "ann", hers)
        # When both have said the same, and others have read it
        sent = []
        for number in range(6):
            sent += [chat.send("team", f"{number}", sender_uid=uid) for uid in ("ann", "bob")]
            hers.keep([sent[-2]])
            local.keep([sent[-1]])
        read = ["read 7/8", "read 5/8", "read 5/8", "read 4/8", "read 1/8", "stored"]
        for uid, number in zip(uids, (0, 0, 2, 3, 3, 3, 4), strict=True):
            chat.ack(uid, "team", sent[2 * number + 1].msgid)
        tell(chat)
        listen(ann, lambda: [state for state in states(hers) if state] == read, acks="off")
    bob.sync()
    # Then
    assert [state for state in states(local) if state] == read
    assert [f"read {each.read}/{each.read + each.unread}" for each in chat.status("team") if each.read] == [
        state for state in read if state != "stored" for _ in range(2)
    ]


class Killed(BaseException):
    """The process ends here and now."""


class Danger:
    """Sessions that die between any two calls of Redis or of the local database."""

    def __init__(self, chat: Chat, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chance = chance
        self.odds = 0.0
        for name in ("keep", "begin", "mark_tried"):
            monkeypatch.setattr(LocalDatabase, name, self.around(getattr(LocalDatabase, name)))
        for name in ("call", "call_many", "call_each"):
            monkeypatch.setattr(chat.system.client, name, self.around(getattr(chat.system.client, name)))

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def dangerous(*args: Any, **kwargs: Any) -> Any:
            self.perhaps()
            result = call(*args, **kwargs)
            self.perhaps()
            return result

        return dangerous

    def perhaps(self) -> None:
        if self.chance.random() < self.odds:
            raise Killed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_sessions_killed_at_random_moments(
    settings: Settings, chat: Chat, other: Chat, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    chance = random.Random(seed)
    danger = Danger(chat, chance, monkeypatch)
    path = path_of(settings.data_dir, "bob")
    gids, rounds, killed = ["team", "home"], 25, 0
    shown: list[list[Message | Receipt]] = []
    for gid in gids:
        other.create_group(gid, ["ann", "bob", "cyd"])

    def session(until: Callable[[LocalDatabase], bool]) -> None:
        with LocalDatabase(path, "bob", exclusive=True) as local:
            shown.append([])
            listen(Device(chat, "bob", local), lambda: until(local), shown[-1], ack_every=2, ack_interval_s=0.02)

    # When
    for number in range(rounds):
        for gid in gids:
            say(other, *(f"{number}.{each}" for each in range(chance.randrange(4))), gid=gid)
        with LocalDatabase(path, "bob") as local:
            local.queue(chance.choice(gids), f"bob {number}")
        danger.odds = 0.03
        give_up = time.monotonic() + 0.3
        try:
            session(lambda _, give_up=give_up: time.monotonic() > give_up)
        except Killed:
            killed += 1
        danger.odds = 0.0
        other.ack("ann", chance.choice(gids))
        tell(other)
    for gid in gids:
        other.ack("cyd", gid)
    tell(other)
    # Then he has everything, and all that he has acked was shown, by each session in order
    session(
        lambda local: (
            all(lines_of(local, gid) == lines_at(other, gid) for gid in gids)
            and {each.unread for each in other.unread("bob")} == {0}
        )
    )
    for gid in gids:
        messages = [[each for each in one if isinstance(each, Message) and each.gid == gid] for one in shown]
        for one in messages:
            assert [each.seq for each in one] == sorted({each.seq for each in one})
        assert {each.msgid for one in messages for each in one} == {msgid for msgid, *_ in lines_at(other, gid)}
    mine = [text for gid in gids for _, text, state in lines_at(other, gid) if state]
    assert sorted(mine) == sorted(f"bob {number}" for number in range(rounds))
    assert 5 < killed < rounds


def lines_of(local: LocalDatabase, gid: str) -> list[tuple[str | None, str, str | None]]:
    return [(line.msgid, line.content, line.state) for line in local.log(gid)]


def lines_at(chat: Chat, gid: str) -> list[tuple[str | None, str, str | None]]:
    """What bob has to have of a group in the end, by the server."""
    return [
        (each.message.msgid, each.message.content, state_of(each) if each.message.sender_uid == "bob" else None)
        for each in chat.status(gid, limit=0)
    ]


def state_of(each: MessageTally) -> str:
    if not each.read:
        return "stored"
    return f"read {each.read}/{each.read + each.unread}" if each.unread else "read by all"


# Sending.


def test_what_is_sent_while_the_server_is_away_goes_out_once_and_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    server = start_valkey(folder)
    settings = Settings.from_env({}, redis_url=server.url, data_dir=str(tmp_path))
    try:
        with Chat.connect(settings=settings) as chat, LocalDatabase(tmp_path / "bob", "bob") as local:
            chat.create_group("team", ["ann", "bob"])
            bob = Device(chat, "bob", local)
            server.kill()
            # When
            for number in range(5):
                bob.queue(str(number), gid="team")
            bob.queue("psst", to_uid="ann")
            assert isinstance(bob.flush().stopped_by, RedisUnavailable)
            assert states(local) == ["waiting"] * 5
            server = start_valkey(folder)
            # Then
            found = listen(bob, 6)
            assert [text for text in said(found) if text != "psst"] == list(map(str, range(5)))
            assert [message.content for message in chat.pull("ann", "team")] == [str(number) for number in range(5)]
            assert [message.content for message in chat.pull("ann", gid_of("ann", "bob"))] == ["psst"]
            assert states(local) == ["stored"] * 5
            assert bob.flush() == ([], [], None)
    finally:
        server.stop()


def test_an_answer_that_never_came_sends_nothing_twice(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.create_group("team", ["ann", "bob"])
    send = chat.send

    def lost(*args: Any, **kwargs: Any) -> Message:
        send(*args, **kwargs)
        monkeypatch.setattr(chat, "send", send)
        raise RedisUnavailable

    monkeypatch.setattr(chat, "send", lost)
    bob.queue("1", gid="team")
    bob.queue("2", gid="team")
    assert bob.flush().sent == []
    assert states(local) == ["waiting", "waiting"]
    # It is not sent again, even if the server has forgotten that it was: it is pulled
    assert [message.content for message in bob.flush().sent] == ["2"]
    assert texts(local) == ["1", "2"]
    assert states(local) == ["stored", "stored"]
    assert [message.content for message in chat.pull("ann")] == ["1", "2"]


def test_only_a_message_that_is_to_blame_is_refused(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    chat.create_group("theirs", ["ann"])
    bob.queue("no member", gid="theirs")
    bob.queue("no group", gid="nowhere")
    bob.queue("strange", gid="team")
    bob.queue("fine", gid="team")
    send = chat.send

    def locked_out(*_: Any, **__: Any) -> Message:
        raise ConfigurationError("Redis refuses this user or password")

    def odd(gid: str, content: str, **options: Any) -> Message:
        if content == "strange":
            raise ImError("it answered: ERR")
        return send(gid, content, **options)

    # When
    monkeypatch.setattr(chat, "send", locked_out)
    assert isinstance(bob.flush().stopped_by, ConfigurationError)
    assert {line.state for line in local.log()} == {"waiting"}
    monkeypatch.setattr(chat, "send", odd)
    flushed = bob.flush()
    # Then
    assert [message.content for message in flushed.sent] == ["fine"]
    assert [outgoing.content for outgoing, _ in flushed.refused] == ["no member", "no group", "strange"]
    assert states(local) == ["stored", "refused: it answered: ERR"]
    assert states(local, "theirs") == ["refused: 'bob' is not a member of 'theirs'"]
    assert states(local, "nowhere") == ["refused: there is no group 'nowhere'"]


# One-to-one.


@pytest.mark.parametrize(
    "uid",
    ["ann", "bob", "a:b", "1:a", "#x[y]{z}", "群主", "ä" * 64, "x" * 128, "dm:1:a:b", "%_'\"\\"],
    ids=lambda uid: uid[:9],
)
def test_one_to_one_with_anybody(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat, settings: Settings, uid: str
) -> None:
    # Given
    first = chat.send_direct(uid, "hello", sender_uid="bob")
    gid = first.gid
    assert gid == gid_of(uid, "bob")
    assert {member.uid for member in chat.members(gid)} == {uid, "bob"}
    # When the other one listens, answers, and reads
    with LocalDatabase(path_of(settings.data_dir, "there"), uid) as theirs:
        found = listen(Device(other, uid, theirs), lambda: texts(theirs, gid) or uid == "bob", ack_interval_s=0.01)
        assert [each.content for each in found if isinstance(each, Message)] == ["hello"] * (uid != "bob")
    other.send_direct("bob", "hello yourself", sender_uid=uid)
    tell(other)
    # Then
    assert {each.gid: each.unread for each in chat.unread("bob")} == {gid: 0 if uid == "bob" else 1}
    bob.sync()
    if uid != "bob":
        assert texts(local, gid) == ["hello yourself"]
        assert [(each.read, each.unread) for each in chat.receipts("bob")] == [(1, 0)]


def test_one_to_one_is_heard_from_the_first_word_on(chat: Chat, other: Chat, bob: Device, local: LocalDatabase) -> None:
    # Given bob, who is live in another group, and has never spoken with ann
    chat.create_group("team", ["bob", "cyd"])
    with chat.listen("bob") as live:
        assert live.poll(0.1) == []
        # When
        sent = [other.send_direct("bob", text, sender_uid="ann") for text in ("hi", "there")]
        heard: list[Message | Receipt] = []
        wait_until(lambda: heard.extend(live.poll(0.05)) or len(heard) == 2)
    # Then
    assert heard == sent
