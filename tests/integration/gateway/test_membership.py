"""A session hears a group from the join on, until the user leaves it."""

from imcore.chat import Chat
from tests.helpers.gateways import Audience
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
        core = gateway._core
        core._catch_up.fall_behind(core._channels.open_group("team"))
        gateway._perform(core.step())
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
