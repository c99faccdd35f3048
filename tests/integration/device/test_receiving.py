"""A device keeps what it yields before it acks it, also one-to-one."""

from contextlib import closing

import pytest

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.model.direct import gid_of
from imcore.model.values import Message, Receipt
from imcore.settings import Settings
from tests.helpers.deadline import wait_until
from tests.helpers.devices import listen, said, texts
from tests.helpers.talk import say
from tests.helpers.workers import deliver_receipts


def test_a_session_keeps_what_it_yields(bob: Device, local: LocalDatabase, chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "1", "2")
    events = listen(bob, lambda: len(texts(local)) == 2)
    assert [each.content for each in events if isinstance(each, Message)] == texts(local) == ["1", "2"]
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
    yielded = listen(bob, lambda: chat.pull("bob") == [], ack_interval_s=0.05)
    # Then
    assert said(yielded) == texts(local) == ["1", "2", "3"]
    deliver_receipts(chat)
    assert [(each.msgid, each.read) for each in chat.receipts("ann")] == [(each.msgid, 1) for each in sent]


def test_messages_in_the_local_database_are_yielded_before_they_are_acked(
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
    events = listen(bob, lambda: {each.unread for each in chat.unread("bob")} == {0}, ack_every=1)
    # Then
    assert said(events) == ["1", "2"] * 2
    assert texts(local) == texts(local, "home") == ["1", "2"]


def test_messages_that_could_not_be_shown_are_not_acked(bob: Device, chat: Chat) -> None:
    # Given a reader that goes away after the first line
    chat.create_group("team", ["ann", "bob"])
    say(chat, "1", "2", "3")
    with closing(bob.live(lambda: False, ack_every=1)) as events:
        next(events)
    # Then
    assert [each.content for each in chat.pull("bob")] == ["1", "2", "3"]


def test_own_messages_are_yielded_from_every_device(bob: Device, local: LocalDatabase, chat: Chat, other: Chat) -> None:
    # Given bob, who is live, and something of his that waits
    chat.create_group("team", ["ann", "bob"])
    bob.queue("waited", gid="team")
    bob.queue("psst", to_uid="ann")

    def meanwhile() -> bool:
        if not sent and not local.waiting():
            sent.append(chat.send("team", "of this device", sender_uid="bob"))
            bob.keep([sent[0]])
            sent.append(other.send("team", "of another one", sender_uid="bob"))
        return len(said(events)) == 4

    # When
    sent: list[Message] = []
    events: list[Message | Receipt] = []
    listen(bob, meanwhile, events)
    # Then
    assert sorted(said(events)) == sorted(["waited", "psst", "of this device", "of another one"])
    assert [text for text in said(events) if text != "psst"] == texts(local)


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
        events = listen(Device(other, uid, theirs), lambda: texts(theirs, gid) or uid == "bob", ack_interval_s=0.01)
        assert [each.content for each in events if isinstance(each, Message)] == ["hello"] * (uid != "bob")
    other.send_direct("bob", "hello yourself", sender_uid=uid)
    deliver_receipts(other)
    # Then
    assert {each.gid: each.unread for each in chat.unread("bob")} == {gid: 0 if uid == "bob" else 1}
    bob.sync()
    if uid != "bob":
        assert texts(local, gid) == ["hello yourself"]
        assert [(each.read, each.unread) for each in chat.receipts("bob")] == [(1, 0)]


def test_a_one_to_one_chat_is_received_from_the_first_message_on(
    chat: Chat, other: Chat, bob: Device, local: LocalDatabase
) -> None:
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
