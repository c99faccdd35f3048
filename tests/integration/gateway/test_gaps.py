"""Sessions with `most`: the newest messages, and a named gap before them, at a cost that does not grow with it."""

import pytest

from imcore import Chat, Gap, Message, Session
from tests.helpers.gateways import Audience, Requests, kill_connections
from tests.helpers.talk import leave_to_sql, say, say_many


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    chat.create_group("team", ["ann", "bob"])
    return chat


def gaps(audience: Audience, session: Session) -> list[tuple[str, str]]:
    return [(each.from_msgid, each.to_msgid) for each in audience.changes[session] if isinstance(each, Gap)]


def heard(audience: Audience, session: Session) -> list[str]:
    return [message.msgid for message in audience.messages[session]]


@pytest.mark.parametrize("most", [0, 1, 3, 9, 2**70])
@pytest.mark.parametrize("trimmed", [0, 1, 4, 6, 7, 9, 10])
def test_the_newest_messages_come_after_a_gap_across_the_trim_line(chat: Chat, most: int, trimmed: int) -> None:
    # Given ten messages, some of them acked and some only in SQL
    sent = [message.msgid for message in say(chat, *"abcdefghij")]
    chat.ack("bob", "team", sent[0])
    if trimmed:
        leave_to_sql(chat, sent[trimmed - 1])
    missed = sent[1:]
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        # When
        bob = gateway.open("bob", most=most)
        audience.settled()
        # Then
        left_out = missed[: max(0, len(missed) - most)]
        assert gaps(audience, bob) == ([(left_out[0], left_out[-1])] if left_out else [])
        assert heard(audience, bob) == missed[len(left_out) :]


def test_a_gap_comes_before_the_messages_after_it(chat: Chat) -> None:
    say(chat, *"abc")
    with chat.gateway() as gateway:
        gateway.open("bob", most=2)
        events = []
        while len(events) < 3:
            events += gateway.poll(0.1)
    assert isinstance(events[0], Gap)
    assert events[0].gid == "team"


def test_what_is_left_out_costs_nothing(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given as many sessions with much to leave out as with little
    costs = []
    for count in (30, 3000):
        for _ in range(count // 500 or 1):
            say_many(chat, min(count, 500))
        requests = Requests(chat, monkeypatch)
        with chat.gateway() as gateway:
            audience = Audience(gateway)
            # When
            bob = gateway.open("bob", start="join", most=5)
            audience.settled()
            # Then
            assert len(heard(audience, bob)) == 5
            assert len(gaps(audience, bob)) == 1
        costs.append((requests.calls["im_pull"], requests.sql))
    assert costs[0] == costs[1]


def test_a_session_with_most_gets_a_gap_after_a_lost_subscription_and_after_a_pause(chat: Chat, other: Chat) -> None:
    # Given sessions that are live, one of them without a limit
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        few, all_ = gateway.open("bob", most=2), gateway.open("bob")
        audience.settled()
        # When both lose their subscription, and then are paused
        sent: list[Message] = []
        for _ in range(2):
            kill_connections(other.system.client.driver, "pubsub")
            sent.extend(say(other, *"abcd"))
            audience.until(lambda: len(audience.messages[all_]) == len(sent))
            audience.until(lambda: heard(audience, few)[-1:] == [sent[-1].msgid])
            gateway.pause(few)
            gateway.pause(all_)
            sent.extend(say(other, *"efgh"))
            audience.poll(0.1)
            gateway.resume(few)
            gateway.resume(all_)
            audience.until(lambda: len(audience.messages[all_]) == len(sent))
            audience.until(lambda: heard(audience, few)[-1:] == [sent[-1].msgid])
        # Then all of it was handed over, or is in a gap
        assert heard(audience, all_) == [each.msgid for each in sent]
        assert gaps(audience, all_) == []
        assert heard(audience, few) == [sent[number].msgid for number in (2, 3, 6, 7, 10, 11, 14, 15)]
        assert gaps(audience, few) == [(sent[number].msgid, sent[number + 1].msgid) for number in (0, 4, 8, 12)]


def test_sessions_with_and_without_a_limit_are_live_together(chat: Chat) -> None:
    uids = [f"u{number}" for number in range(30)]
    chat.add_members("team", uids)
    say(chat, *"abcdef")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid, most=number % 3 or None) for number, uid in enumerate(uids)]
        audience.settled()
        assert len({id(session.cursors["team"]) for session in sessions}) == 1
        assert [len(audience.messages[session]) for session in sessions] == [6, 1, 2] * 10


def test_an_ack_after_a_gap_acks_the_gap(chat: Chat) -> None:
    sent = say(chat, *"abc")
    with chat.gateway(acks="client", ack_every=1) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", most=1)
        audience.settled()
        assert [each.unread for each in chat.unread("bob")] == [3]
        gateway.received(bob, "team", sent[0].msgid)  # which it was not handed
        audience.until(lambda: [each.unread for each in chat.unread("bob")] == [2])
        gateway.received(bob, "team", sent[2].msgid)
        audience.until(lambda: [each.unread for each in chat.unread("bob")] == [0])
