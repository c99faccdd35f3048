"""Devices of one user take nothing from each other, and all have the tallies of the server."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import PAGE, LocalDatabase
from imcore.model.values import Tally
from imcore.settings import Settings
from tests.helpers.devices import listen, said, states, texts
from tests.helpers.talk import say, say_many
from tests.helpers.workers import deliver_receipts


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
        events = listen(bob, 5)
        assert sorted(said(events)) == ["1", "1", "2", "2", "hi"]
    assert [texts(local, gid) for gid in ("team", "new", "home", first.gid)] == [["1", "2"], ["1", "2"], [], ["hi"]]


def test_a_fresh_device_begins_at_the_offset(bob: Device, local: LocalDatabase, chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "long ago")
    chat.ack("bob", "team")
    say(chat, "1")
    bob.keep([chat.send("team", "mine", sender_uid="bob")])
    bob.sync()
    assert texts(local) == ["1", "mine"]


def test_a_new_member_of_a_first_group_gets_it_from_the_join_on(
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
    messages = [chat.send("team", str(number), sender_uid="bob") for number in range(3)]
    for device in (local, elsewhere):
        device.keep(messages)
    # When one of them gets the receipts, and confirms them
    chat.ack("ann", "team", messages[1].msgid)
    deliver_receipts(chat)
    listen(bob, lambda: states(local) == ["read 1/2", "read 1/2", "stored"] and not other.receipts("bob"))
    chat.ack("cyd", "team", messages[0].msgid)
    deliver_receipts(chat)
    chat.confirm_receipts("bob", chat.receipts("bob"))
    # Then the other one knows it too, at its login, and so does the first in its next session
    Device(other, "bob", elsewhere).sync()
    assert states(elsewhere) == ["read by all", "read 1/2", "stored"]
    listen(bob, lambda: states(local) == states(elsewhere))


def test_own_messages_that_come_with_their_receipts_long_confirmed_are_asked_for(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given messages and receipts of another device since this one was used
    chat.create_group("team", ["ann", "bob"])
    bob.sync()
    say(other, *map(str, range(3)), sender="bob")
    other.ack("ann", "team")
    deliver_receipts(other)
    other.confirm_receipts("bob", other.receipts("bob"))
    # When they come after all that was here before was asked for
    monkeypatch.setattr(Device, "_fetch_older_tallies", lambda device: setattr(device, "_has_all_tallies", True))
    listen(bob, 3)
    # Then
    assert states(local) == ["read by all"] * 3


def test_tallies_are_asked_for_by_the_page(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    bob.sync()
    sent = say_many(chat, 2 * PAGE, sender="bob")
    bob.sync()
    local.keep([Tally("team", sent[-1], 1, 0, 1)])
    page_sizes: list[int] = []
    tallies = chat.tallies

    def ask(gid: str, msgids: list[str], *, by: str | None) -> list[Tally]:
        page_sizes.append(len(msgids))
        return tallies(gid, msgids, by=by)

    monkeypatch.setattr(chat, "tallies", ask)
    # When
    chat.ack("ann", "team")
    for _ in range(2):
        bob.sync()
    # Then
    assert page_sizes == [PAGE, PAGE - 1]
    assert set(states(local)) == {"read by all"}


def test_lost_and_unreachable_messages_do_not_hide_the_other_tallies(
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


def test_a_reconnect_brings_the_tallies_of_the_meantime(
    bob: Device, local: LocalDatabase, chat: Chat, other: Chat
) -> None:
    # Given bob, who is live
    chat.create_group("team", ["ann", "bob"])
    bob.keep([chat.send("team", "hi", sender_uid="bob")])
    lost_connections: list[int] = []

    def meanwhile() -> bool:
        if not lost_connections and other.system.client.driver.client_list(_type="pubsub"):
            # When it was read, and the receipt published and confirmed, while his connection was lost
            other.ack("ann", "team")
            deliver_receipts(other)
            other.confirm_receipts("bob", other.receipts("bob"))
            lost_connections.append(other.system.client.driver.client_kill_filter(_type="pubsub"))
        return states(local) == ["read by all"]

    # Then
    listen(bob, meanwhile)


@pytest.mark.parametrize("looks", range(10))
def test_a_session_that_is_to_end_is_over_and_has_acked_what_it_yielded(
    bob: Device, chat: Chat, other: Chat, looks: int
) -> None:
    # Given a session that finds at its `looks`-th check that it is to end
    chat.create_group("team", ["ann", "bob"])
    say(other, "hi")
    answers = iter([False] * looks)
    # When
    events = list(bob.live(lambda: next(answers, True)))
    # Then
    assert [member.online for member in other.members("team")] == [False, False]
    assert [position.unread for position in other.unread("bob")] == [1 - len(events)]
