"""Acks go out by count and by time, and only for messages that were received."""

from imcore.chat import Chat
from imcore.streams.keys import SEPARATOR
from tests.helpers.gateways import Audience
from tests.helpers.talk import offset, push_receipts, say


def test_acks_go_out_by_count_and_by_time(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway(ack_every=3, ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        sent = say(chat, "1", "2")
        audience.until(lambda: len(audience.heard(bob)) == 2)
        audience.settled()
        assert offset(chat, "bob") is None
        sent += say(chat, "3")
        audience.until(lambda: offset(chat, "bob") == sent[2].msgid)
    with chat.gateway(ack_every=1000, ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        sent += say(chat, "4")
        audience.until(lambda: offset(chat, "bob") == sent[3].msgid)


def test_a_clean_end_acks_delivered_messages_and_a_kill_does_not(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2")
    # When
    gateway = chat.gateway()
    audience = Audience(gateway)
    bob = gateway.open("bob")
    audience.until(lambda: audience.heard(bob) == ["1", "2"])
    gateway.close(clean=False)
    # Then
    assert offset(chat, "bob") is None
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
    assert offset(chat, "bob") == sent[1].msgid


def test_items_taken_from_an_iterator_are_acked_and_the_rest_comes_again(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3", "4")
    # When
    with chat.listen("bob") as live:
        heard = iter(live)
        for expected in sent[:2]:
            assert next(heard) == expected
    # Then
    assert [message.content for message in chat.pull("bob")] == ["3", "4"]
    with chat.listen("bob") as live:
        assert next(iter(live)) == sent[2]
        assert live.poll(1.0) == [sent[3]]
    assert chat.pull("bob") == []


def test_a_gateway_without_acks_acks_no_message(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    say(chat, "1", "2", sender="bob")
    push_receipts(chat, say(chat, "3", sender="bob")[0])
    with chat.gateway(acks="off", ack_every=1) as gateway:
        audience = Audience(gateway)
        ann, bob = gateway.open("ann"), gateway.open("bob")
        audience.until(lambda: len(audience.heard(ann)) == 3 and audience.receipts[bob])
        audience.settled()
    assert offset(chat, "ann") is None
    assert len(chat.receipts("bob")) == 1


def test_a_hundred_messages_to_forty_cost_four_hundred_acks(chat: Chat) -> None:
    uids = [f"u{number}" for number in range(40)]
    chat.create_group("team", [*uids, "ann"])
    with chat.gateway(ack_interval_s=3600) as gateway:
        audience = Audience(gateway)
        sessions = [gateway.open(uid) for uid in uids]
        for number in range(100):
            say(chat, str(number))
            audience.until(lambda n=number: all(len(audience.heard(s)) == n + 1 for s in sessions))
        audience.settled()
        # Moves, as the journal has them: each is one ack of one member that reached Redis.
        acks = sum(len(move.split(SEPARATOR.encode())) - 3 for move in journalled_moves(chat))
    assert 40 * 10 >= acks >= 40 * 9


def journalled_moves(chat: Chat) -> list[bytes]:
    moves: list[bytes] = []
    for key in chat.system.client.space.journals():
        for _, fields in chat.system.client.query("XRANGE", key, "-", "+"):
            moves += fields[b"moves"].split(b"\x1e") if fields[b"kind"] == b"ack" else []
    return moves
