"""A session hears a group from the join on, until the user leaves it."""

from imcore import Joined, Left, NewMessage, Session
from imcore.chat import Chat
from tests.helpers.async_driver import lane_of
from tests.helpers.gateways import Audience, kill_connections
from tests.helpers.talk import offset, say


def test_a_session_hears_a_group_after_the_join_and_not_after_the_leave(chat: Chat) -> None:
    chat.create_group("team", ["ann"])
    chat.create_group("home", ["ann", "bob"])
    say(chat, "before")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        chat.add_members("team", ["bob"])
        say(chat, "1", "2")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
        chat.remove_members("team", ["bob"])
        say(chat, "without bob")
        say(chat, "at home", gid="home")
        audience.until(lambda: audience.heard(bob, "home") == ["at home"])
        chat.add_members("team", ["bob"])
        say(chat, "3")
        audience.until(lambda: audience.heard(bob) == ["1", "2", "3"])


def test_a_member_who_leaves_and_comes_back_unseen_gets_no_message_twice(chat: Chat, other: Chat) -> None:
    # Given a session that is behind, and the news of its membership still on the way
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway(acks="off") as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        say(other, "1")
        audience.until(lambda: audience.heard(bob) == ["1"])
        other.remove_members("team", ["bob"])
        say(other, "without bob")
        other.add_members("team", ["bob"])
        say(other, "2")
        # When it pulls first, and gets the push afterwards
        lane = lane_of(gateway, "team")
        core = lane.core
        core._catch_up.fall_behind(core._channels.open_group("team"))
        lane._perform(core.step())
        audience.until(lambda: len(audience.heard(bob)) >= 2)
        audience.settled()
        # Then
        assert audience.heard(bob) == ["1", "2"]


def test_every_session_hears_a_group_from_the_join_on(chat: Chat, other: Chat) -> None:
    # Given two sessions, and one of them acks what came before the other looks
    chat.create_group("home", ["bob"])
    with chat.gateway(ack_every=1) as quick, other.gateway() as slow:
        quick_audience, slow_audience = Audience(quick), Audience(slow)
        one, two = quick.open("bob"), slow.open("bob")
        quick_audience.settled()
        slow_audience.settled()
        chat.create_group("team", ["ann", "bob"])
        sent = say(chat, "1", "2")
        quick_audience.until(lambda: quick_audience.heard(one) == ["1", "2"])
        quick_audience.until(lambda: offset(chat, "bob") == sent[1].msgid)
        say(chat, "3", sender="bob")
        # Then
        slow_audience.until(lambda: slow_audience.heard(two) == ["1", "2", "3"])


def changes(audience: Audience, session: Session) -> list[tuple[type, str]]:
    return [(type(each), each.gid) for each in audience.changes[session]]


def test_joins_and_leaves_are_told_once_each_around_the_messages(chat: Chat, other: Chat) -> None:
    # Given two sessions of one user, and one of another
    chat.create_group("home", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open("bob"), gateway.open("bob", start="live")]
        ann = gateway.open("ann")
        audience.settled()
        # When
        order: list[object] = []
        other.create_group("team", ["ann", "bob"])
        say(other, "1")
        while "1" not in order:
            events = [event for event in audience.poll() if sessions[0] in event.sessions]
            order += [event.message.content if isinstance(event, NewMessage) else type(event) for event in events]
        other.remove_members("team", ["bob"])
        audience.until(lambda: len(audience.changes[sessions[1]]) == 2)
        other.add_members("team", ["bob"])
        say(other, "2")
        audience.until(lambda: all(audience.heard(session) == ["1", "2"] for session in sessions))
        # Then
        audience.settled()
        assert order == [Joined, "1"]
        for session in sessions:
            assert changes(audience, session) == [(Joined, "team"), (Left, "team"), (Joined, "team")]
        assert changes(audience, ann) == [(Joined, "team")]


def test_joins_and_leaves_that_a_lost_subscription_hid_are_told(chat: Chat, other: Chat) -> None:
    chat.create_group("old", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        for number in range(3):
            # When
            kill_connections(other.system.client.driver, "pubsub")
            other.create_group(f"new{number}", ["ann", "bob"])
            other.remove_members("old" if number == 0 else f"new{number - 1}", ["bob"])
            say(other, "hi", gid=f"new{number}")
            audience.until(lambda n=number: audience.heard(bob, f"new{n}") == ["hi"])
            audience.until(lambda n=number: len(audience.changes[bob]) == 2 * (n + 1))
        # Then
        audience.settled()
        assert set(changes(audience, bob)) == {
            *((Joined, f"new{number}") for number in range(3)),
            *((Left, gid) for gid in ("old", "new0", "new1")),
        }
        assert len(audience.changes[bob]) == 6


def test_a_group_that_is_gone_is_left(chat: Chat, other: Chat) -> None:
    # Given a leave whose news never comes: a message shows it
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        channel = other.system.client.space.inboxes("bob")
        core = lane_of(gateway, "team").core
        core._channels.owners = {name: owner for name, owner in core._channels.owners.items() if name not in channel}
        other.remove_members("team", ["bob"])
        core._catch_up.fall_behind(core._channels.groups["team"])
        audience.until(lambda: changes(audience, bob) == [(Left, "team")])
        assert bob.cursors == {}
        core._channels.owners.update((name, core._channels._inboxes["bob"]) for name in channel)
