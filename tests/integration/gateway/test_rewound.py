"""What sessions are told to forget, and what they are not: on one server, whose losses a test makes by hand."""

import pytest

from imcore import Chat, NewMessage, Rewound
from imcore import msgid as msgids
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import HandedMessage
from tests.helpers.devices import texts
from tests.helpers.gateways import Audience, kill_connections
from tests.helpers.lost_messages import after, process, push, restart
from tests.helpers.talk import leave_to_sql, offset, say
from tests.helpers.workers import store


@pytest.fixture
def redis_url(valkey: str) -> str:
    return valkey


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


def test_what_the_server_lost_is_taken_back_where_the_two_part(chat: Chat) -> None:
    # Given a session that was handed two messages by a server that loses them, as it is killed
    [first] = say(chat, "first")
    with chat.gateway(ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.heard(bob) == ["first"])
        lost = after(first, "lost", by_ms=60_000)
        push(chat, lost, process(chat))
        push(chat, after(lost, "lost, too"), process(chat))
        audience.until(lambda: audience.heard(bob) == ["first", "lost", "lost, too"])
        # When the next server stores others, some of them as of an earlier time
        restart(chat)
        say(chat, "second", "third")
        # Then
        audience.until(lambda: audience.heard(bob) == ["first", "lost", "lost, too", "second", "third"])
        assert audience.changes[bob] == [Rewound(bob.as_recipients, "team", first.msgid)]
        audience.until(lambda: [each.unread for each in chat.unread("bob")] == [0])


def test_nobody_is_handed_what_another_process_pushes(chat: Chat) -> None:
    # Given a session that was handed a message by the server that there is now
    [first] = say(chat, "first")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.heard(bob) == ["first"])
        # When a server pushes something that was stopped, and was replaced by this one
        push(chat, after(first, "ghost"), "1")
        say(chat, "second")
        # Then
        audience.until(lambda: audience.heard(bob) == ["first", "second"])
        assert audience.changes[bob] == []


@pytest.mark.parametrize("acked", [True, False])
def test_what_a_client_has_acked_of_the_rest_stays_acked(chat: Chat, acked: bool) -> None:
    # Given a client that acks only the newest message that it was handed, which the server then loses
    [first] = say(chat, "first")
    with chat.gateway(acks="client", ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.heard(bob) == ["first"])
        lost = after(first, "lost")
        push(chat, lost, process(chat))
        audience.until(lambda: audience.heard(bob) == ["first", "lost"])
        if acked:
            gateway.received(bob, "team", lost.msgid)
        # When
        kill_connections(chat.system.client.driver, "pubsub")
        audience.until(lambda: audience.changes[bob] == [Rewound(bob.as_recipients, "team", first.msgid)])
        # Then
        say(chat, "second")
        audience.until(lambda: audience.heard(bob) == ["first", "lost", "second"])
        audience.until(lambda: (offset(chat, "bob") == first.msgid) == acked)


def test_who_is_paused_is_told_once_they_are_resumed(chat: Chat) -> None:
    [first] = say(chat, "first")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.heard(bob) == ["first"])
        push(chat, after(first, "lost"), process(chat))
        audience.until(lambda: audience.heard(bob) == ["first", "lost"])
        # When
        gateway.pause(bob)
        audience.settled()
        restart(chat)
        say(chat, "second")
        assert audience.changes[bob] == []
        gateway.resume(bob)
        # Then
        audience.until(lambda: audience.heard(bob) == ["first", "lost", "second"])
        assert audience.changes[bob] == [Rewound(bob.as_recipients, "team", first.msgid)]


def test_what_was_trimmed_recalled_or_erased_is_not_taken_back(chat: Chat) -> None:
    # Given a session that has all messages
    chat.add_members("team", ["cy"])
    sent = say(chat, "1", "2", "3", "4")
    say(chat, "5", sender="cy")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: len(audience.heard(bob)) == 5)
        # When all that may change of a message changes, and the server is another one each time
        chat.recall("team", sent[0].msgid, by="ann")
        restart(chat)
        leave_to_sql(chat, sent[2].msgid)
        chat.system.database.upgrade()
        chat.erase_user("cy")
        restart(chat)
        kill_connections(chat.system.client.driver, "pubsub")
        say(chat, "6")
        audience.until(lambda: audience.heard(bob)[-1] == "6")
        store(chat)
        leave_to_sql(chat, chat.history("ann", "team").messages[-1].msgid)
        restart(chat)
        kill_connections(chat.system.client.driver, "pubsub")
        say(chat, "7")
        audience.until(lambda: audience.heard(bob)[-1] == "7")
        # Then
        assert [event for event in audience.events[bob] if isinstance(event, Rewound)] == []
        assert len({event.msgid for event in audience.events[bob] if isinstance(event, NewMessage)}) == 8


def test_what_sql_has_is_not_taken_back(chat: Chat) -> None:
    # Given a message that a session has, and SQL
    first, second = say(chat, "first", "second")
    store(chat)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.heard(bob) == ["first", "second"])
        # When Redis loses it: the workers bring it back
        keys, driver = chat.system.client.space.group("team"), chat.system.client.driver
        driver.xdel(keys.stream, second.msgid)
        driver.hset(keys.meta, mapping={"seq": 1, "last": msgids.pack(first.msgid)})
        kill_connections(driver, "pubsub")
        audience.until(lambda: bob.reconnects == 1)
        audience.settled()
        # Then
        assert audience.changes[bob] == []


def test_a_device_forgets_at_its_login_what_no_server_has(chat: Chat, settings: Settings) -> None:
    # Given a device that has own messages and others that were lost, between others that were not
    [first] = say(chat, "first")
    lost = after(first, "lost", by_ms=60_000)
    own = after(lost, "my own", sender_uid="bob", client_msgid="c-1")
    with LocalDatabase(path_of(settings.data_dir, "bob"), "bob", exclusive=True) as local:
        Device(chat, "bob", local).sync()
        local.keep([lost, own], {"team": own.msgid})
        restart(chat)
        say(chat, "second")
        # When
        Device(chat, "bob", local).sync()
        # Then
        assert texts(local) == ["first", "second", "my own"]
        assert [message.content for message in chat.history("bob", "team").messages] == texts(local)
        assert local.waiting() == []


def test_a_msgid_that_two_processes_have_given_is_that_of_two_messages(chat: Chat) -> None:
    # Given a message before a restart, and one after it
    client, former = chat.system.client, process(chat)
    [first] = say(chat, "first")
    restart(chat)
    [second] = say(chat, "second")

    def parts_at(msgid: str, by: str, *, is_pushed: bool = True) -> str | None:
        handed = HandedMessage(msgids.pack(msgid), by, is_pushed)
        pull = message_calls.pull(client.space, "team", ["bob"], after=handed.msgid, count=1, most_bytes=1)
        found = client.call(message_calls.with_check(pull, handed)).parts_at
        return None if found is None else msgids.unpack(found)

    # The former process may have given the second msgid, too, as the replaced primary that it is by now
    assert parts_at(second.msgid, former) == first.msgid
    # Whoever only hands messages over may have them from another
    assert parts_at(second.msgid, former, is_pushed=False) is None
    assert parts_at(second.msgid, process(chat)) is None
    assert parts_at(first.msgid, former) is None
