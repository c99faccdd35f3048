"""Every session of a user gets everything, and many users share a gateway."""

from imcore.chat import Chat
from imcore.model.values import Draft
from imcore.streams.calls import message_calls
from tests.helpers.gateways import Audience
from tests.helpers.talk import say


def test_every_session_of_a_user_gets_everything(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as gateway, chat.gateway() as elsewhere:
        audience, elsewhere_audience = Audience(gateway), Audience(elsewhere)
        say(chat, "1")
        one, two = gateway.open("bob"), gateway.open("bob")
        three = elsewhere.open("bob")
        audience.until(lambda: audience.heard(one) == audience.heard(two) == ["1"])
        elsewhere_audience.until(lambda: elsewhere_audience.heard(three) == ["1"])
        late = gateway.open("bob")
        say(chat, "2")
        audience.until(lambda: audience.heard(one) == audience.heard(two) == audience.heard(late) == ["1", "2"])
        elsewhere_audience.until(lambda: elsewhere_audience.heard(three) == ["1", "2"])


def test_forty_of_two_hundred_hear_a_hundred_messages(chat: Chat) -> None:
    # Given
    uids = [f"u{number}" for number in range(200)]
    chat.create_group("team", uids)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in uids[:40]]
        audience.settled()
        # When
        texts = [str(number) for number in range(100)]
        say(chat, *texts, sender="u199")
        # Then
        audience.until(lambda: all(audience.heard(session) == texts for session in sessions))
    assert {each.read for each in chat.status("team", limit=0)} == {40}


def test_an_ended_session_gets_nothing_more(chat: Chat) -> None:
    # Given one that has more to catch up with than one page
    chat.create_group("team", ["ann", "bob", "cyd"])
    drafts = [Draft("ann", str(number)) for number in range(700)]
    chat.system.client.call(message_calls.send(chat.system.client.space, "team", drafts, 1000))
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        bob, cyd = gateway.open("bob"), gateway.open("cyd")
        audience.until(lambda: audience.messages[bob])
        # When
        gateway.end(bob)
        before = len(audience.messages[bob])
        audience.until(lambda: len(audience.messages[cyd]) == 700)
        # Then
        assert len(audience.messages[bob]) == before < 700
        assert chat.online(["bob", "cyd"]) == {"cyd"}
    assert [each.unread for each in chat.unread("bob")] == [700 - before]
