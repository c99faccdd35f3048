"""Batches of sends and acks do the same as single calls in the same order."""

import random

import pytest

from imcore import Chat, Draft
from imcore.admin.retention import trim
from imcore.errors import InvalidInput, NotMember, UnknownGroup, UnknownMessage
from imcore.model.values import Ack, Message
from imcore.operations.messages import MESSAGES_PER_CALL
from imcore.streams.calls import message_calls
from tests.helpers.idempotency import HOUR, put_back
from tests.helpers.workers import store


def messages_of(chat: Chat, gid: str = "g") -> list[Message]:
    return [each.message for each in chat.status(gid, limit=0)]


def test_messages_are_stored_in_order_and_each_is_answered(chat: Chat) -> None:
    # Given more messages than one call takes, one of them by a stranger
    chat.create_group("g", ["ann", "bob"])
    drafts = [Draft("ann", f"message {number}", f"c{number}", number) for number in range(2 * MESSAGES_PER_CALL)]
    drafts[7] = Draft("eve", "let me in")

    # When
    sent = chat.send_many("g", drafts)

    # Then
    assert isinstance(sent.pop(7), NotMember)
    assert sent == messages_of(chat)
    assert [message.seq for message in sent if isinstance(message, Message)] == list(range(1, len(drafts)))


def test_a_repeated_message_is_answered_as_it_was_stored(chat: Chat) -> None:
    chat.create_group("g", ["ann"])
    first = chat.send("g", "once", sender_uid="ann", client_msgid="1")
    assert chat.send_many("g", [Draft("ann", "twice", "1"), Draft("ann", "new", "2")])[0] == first
    assert [message.content for message in messages_of(chat)] == ["once", "new"]


def test_a_message_twice_in_one_call_is_stored_once(chat: Chat) -> None:
    chat.create_group("g", ["ann", "bob"])
    drafts = [Draft("ann", "one", "1"), Draft("bob", "another's", "1"), Draft("ann", "two", "1"), Draft("ann", "one")]
    one, anothers, again, unnamed = chat.send_many("g", drafts)
    assert one == again
    assert [each.content for each in messages_of(chat)] == ["one", "another's", "one"]
    assert [one, anothers, unnamed] == messages_of(chat)


def test_a_client_msgid_is_known_for_as_long_as_is_promised_and_not_for_ever(chat: Chat) -> None:
    def wait(ms: int) -> None:
        """Let time pass, and the worker `jobs` look each hour."""
        for _ in range(ms // HOUR):
            put_back(chat, "g", HOUR)
            chat.system.client.call(message_calls.rotate_idempotency(chat.system.client.space, "g"))

    # Given
    chat.create_group("g", ["ann"])
    keys = chat.system.client.space.group("g")
    life = chat.system.settings.idempotency_ms + 3 * HOUR  # two of the steps in which a table counts
    first = chat.send("g", "first", sender_uid="ann", client_msgid="1")
    # When its table is old enough, another one takes its turn
    wait(life - HOUR)
    second = chat.send("g", "second", sender_uid="ann", client_msgid="2")
    wait(HOUR)
    third = chat.send("g", "third", sender_uid="ann", client_msgid="3")
    # Then all are known still
    again = [Draft("ann", "again", each) for each in ("1", "2", "3")]
    assert chat.send_many("g", again) == [first, second, third]
    # And what is older than twice that is not
    wait(life)
    assert chat.send("g", "third", sender_uid="ann", client_msgid="3") == third
    chat.send("g", "fourth", sender_uid="ann", client_msgid="4")
    assert chat.send("g", "first anew", sender_uid="ann", client_msgid="1") != first
    # And a server that evicts keys with a time to live takes none of these keys
    assert [chat.system.client.driver.pttl(key) for key in (keys.idempotency_newer, keys.idempotency_older)] == [-1, -1]
    # And where nobody says anything any more, nothing is left of it
    for left in (1, 0, 0):
        wait(life)
        assert chat.system.client.call(message_calls.rotate_idempotency(chat.system.client.space, "g")) == left


def test_client_msgids_of_a_quiet_group_are_dropped_as_well(chat: Chat) -> None:
    # Given a client_msgid in a group in which nobody says anything more, and a trim once a day
    chat.create_group("g", ["ann"])
    chat.send("g", "first", sender_uid="ann", client_msgid="1")
    left = []
    for _ in range(36):
        put_back(chat, "g", 24 * HOUR)
        left.append(chat.system.client.call(message_calls.rotate_idempotency(chat.system.client.space, "g")))
    # Then it is the older one's turn after 18 looks, and it is gone after 18 more
    assert left == [1] * 35 + [0]


@pytest.mark.parametrize("seed", range(2))
def test_a_client_msgid_is_known_for_as_long_as_is_promised_however_often_the_clock_jumps(
    chat: Chat, seed: int
) -> None:
    # Given a clock that goes wrong, by minutes or days, and is put right, again and again, while people write
    chance = random.Random(seed)
    chat.create_group("g", ["ann"])
    sent: list[tuple[int, Draft, Message]] = []
    passed = off = 0
    for number in range(200):
        waited = chance.choice([1, 10, 40, 90]) * HOUR // 60
        wrong = 0 if off else chance.choice([-1, 1]) * chance.choice([HOUR // 4, 2 * HOUR, 24 * HOUR, 500 * HOUR])
        jump = chance.choice([0, wrong - off])
        passed, off = passed + waited, off + jump
        put_back(chat, "g", waited + jump)
        draft = Draft("ann", f"message {number}", str(number))
        # When what was sent in the time that is promised is sent again
        recent = [each for each in sent if each[0] > passed - chat.system.settings.idempotency_ms]
        again = chat.send_many("g", [*(draft for _, draft, _ in recent), draft])
        # Then all of it is known
        assert again[:-1] == [message for _, _, message in recent]
        assert isinstance(again[-1], Message)
        sent.append((passed, draft, again[-1]))
    # And what is kept does not grow for ever
    keys = chat.system.client.space.group("g")
    kept = sum(chat.system.client.driver.hlen(key) for key in (keys.idempotency_newer, keys.idempotency_older))
    assert kept <= 2 + sum(1 for at, _, _ in sent if at > passed - 4 * chat.system.settings.idempotency_ms)


@pytest.mark.parametrize("seed", range(5))
def test_tallies_of_many_messages_are_those_of_each_alone(chat: Chat, seed: int) -> None:
    # Given people who come and go, write and read
    chance = random.Random(seed)
    uids = [f"u{number}" for number in range(8)]
    chat.create_group("g", uids)
    for _ in range(200):
        uid = chance.choice(uids)
        members = [member.uid for member in chat.members("g")]
        match chance.randrange(8):
            case 0 if len(members) > 2 and uid in members:
                chat.remove_members("g", [uid])
            case 1:
                chat.add_members("g", [uid])
            case 2 | 3 if uid in members and (unread := chat.pull(uid)):
                chat.ack(uid, "g", chance.choice(unread).msgid)
            case _:
                chat.send("g", "hi", sender_uid=chance.choice(members))
    msgids = [message.msgid for message in messages_of(chat)]
    alone = [chat.tally("g", msgid) for msgid in msgids]
    assert len({tally.read for tally in alone}) > 2
    # When
    shuffled = chance.sample(msgids, len(msgids))
    sample = sorted(chance.sample(msgids, 7), key=msgids.index)
    # Then
    assert chat.tallies("g", msgids) == alone
    assert chat.tallies("g", shuffled) == [alone[msgids.index(msgid)] for msgid in shuffled]
    assert chat.tallies("g", sample) == [alone[msgids.index(msgid)] for msgid in sample]
    assert [(each.read, each.unread) for each in chat.status("g", limit=0)] == [
        (tally.read, tally.unread) for tally in alone
    ]


def test_ack_many_answers_each_ack_as_a_single_one(chat: Chat) -> None:
    # Given
    chat.create_group("g", ["ann", "bob", "cy"])
    one, two = (chat.send("g", text, sender_uid="ann") for text in ("one", "two"))
    chat.ack("cy", "g", two.msgid)

    # When
    never = "1767225600000-1"
    acks = [("bob", one.msgid), ("eve", one.msgid), ("cy", one.msgid), ("bob", None), ("ann", never), ("eve", never)]
    bob, eve, cy, again, ann, nobody = chat.ack_many("g", acks)

    # Then
    assert bob == Ack("g", "bob", one.msgid, advanced=True)
    assert isinstance(eve, NotMember)
    assert cy == Ack("g", "cy", two.msgid, advanced=False)
    assert again == Ack("g", "bob", two.msgid, advanced=True)
    assert isinstance(ann, UnknownMessage)
    assert isinstance(nobody, NotMember)
    assert [tally.read for tally in chat.status("g")] == [2, 2]


def test_messages_that_redis_has_trimmed_can_be_acked(chat: Chat) -> None:
    chat.create_group("g", ["ann", "bob", "cy"])
    one, *_ = (chat.send("g", text, sender_uid="ann") for text in ("one", "two", "three"))
    store(chat)
    assert trim(chat.system, keep_messages=1, keep_ms=0).entries == 3
    assert chat.ack_many("g", [("bob", one.msgid), ("cy", one.msgid)]) == [
        Ack("g", "bob", one.msgid, advanced=True),
        Ack("g", "cy", one.msgid, advanced=True),
    ]


@pytest.mark.parametrize(
    "bad", [Draft("ann", ""), Draft("ann", "hi", "x" * 200), Draft("ann", "hi", "", 1 << 60), "hi"]
)
def test_send_many_stores_nothing_if_one_draft_is_invalid(chat: Chat, bad: Draft) -> None:
    chat.create_group("g", ["ann"])
    with pytest.raises(InvalidInput):
        chat.send_many("g", [Draft("ann", "good"), bad])
    assert messages_of(chat) == []


def test_an_unknown_group_is_the_error_of_each(chat: Chat) -> None:
    assert all(isinstance(each, UnknownGroup) for each in chat.send_many("none", [Draft("ann", "hi")] * 3))
    assert all(isinstance(each, UnknownGroup) for each in chat.ack_many("none", [("ann", None), ("bob", None)]))
