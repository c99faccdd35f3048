"""A login brings a local database up to date; its data belong to one server."""

from collections.abc import Iterable
from typing import Any

import pytest

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import PAGE, LocalDatabase, path_of
from imcore.errors import LocalDatabaseError
from imcore.model.values import Message, Receipt
from imcore.settings import Settings
from imcore.streams.keys import CONFIG
from tests.helpers.devices import listen, states, texts
from tests.helpers.talk import leave_to_sql, say, say_many
from tests.helpers.workers import deliver_receipts


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


def test_a_login_brings_everything_by_the_page(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more than a page, some of it trimmed, and receipts
    chat.create_group("team", ["ann", "bob"])
    own = [message.msgid for message in say(chat, "mine", sender="bob")]
    chat.ack("ann", "team")
    sent = say_many(chat, 1200)
    deliver_receipts(chat)
    leave_to_sql(chat, sent[700])
    local.keep([chat.send("team", "mine too", sender_uid="bob")])
    pages: list[int] = []
    keep = local.keep

    def count(items: Iterable[Message | Receipt], *places: Any) -> None:
        page = list(items)
        pages.append(len(page))
        keep(page, *places)

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
        gids = groups_of(uid)
        other.remove_members("a", ["bob"])
        return gids

    monkeypatch.setattr(chat, "groups_of", then_leaves)
    bob.sync()
    assert texts(local) == ["hi"]


def test_a_device_that_was_away_has_the_same_tallies_as_one_that_was_there(
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
        deliver_receipts(chat)
        listen(ann, lambda: [state for state in states(hers) if state] == read, acks="off")
    bob.sync()
    # Then
    assert [state for state in states(local) if state] == read
    assert [f"read {each.read}/{each.read + each.unread}" for each in chat.status("team") if each.read] == [
        state for state in read if state != "stored" for _ in range(2)
    ]
