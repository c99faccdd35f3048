"""Receipts of a gateway, on fakeredis: each change once to each session, the newest last, in bounded pieces."""

import itertools
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest

from imcore import Chat, Receipt, Session
from imcore.errors import RedisRefuses, RedisUnavailable
from imcore.gateway import sessions as gateway_sessions
from imcore.gateway.channels import Inbox
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import ReceiptsChanged
from imcore.gateway.sessions import RECEIPTS_PER_EVENT, ReceiptConfirmation, ReceiptDelivery
from imcore.operations.effects import Effect, RedisCalls
from imcore.util.backoff import ThrottledLog
from tests.helpers.talk import publish_receipts, say_many


class Sender:
    """The sessions of ann, who sends messages to a group of three."""

    def __init__(self, chat: Chat, sessions: int = 1) -> None:
        self.chat = chat
        self.queue = DeliveryQueue()
        self.delivery = ReceiptDelivery(chat.system.client.space, self.queue, ThrottledLog(lambda: 0.0), lambda: 0.0)
        self.sessions = [Session("ann") for _ in range(sessions)]
        self.inbox = Inbox("ann", 0, dict.fromkeys(self.sessions))

    def say(self, count: int, gid: str = "team") -> list[str]:
        return say_many(self.chat, count, gid=gid)

    def mark(self, sent: Sequence[str], gid: str = "team") -> None:
        publish_receipts(self.chat, sent, gid=gid)

    def ask(self, *sessions: Session) -> list[ReceiptsChanged]:
        """Let sessions ask for all that waits."""
        self.delivery.fetch(sessions or self.sessions)
        while self.delivery.due() <= 0.0:
            self.chat.performer.perform(self.delivery.step())
        return self.taken()

    def push(self, *receipts: Receipt) -> list[ReceiptsChanged]:
        self.delivery.pushed(self.inbox, receipts)
        return self.taken()

    def taken(self) -> list[ReceiptsChanged]:
        return [event for event in self.queue.take() if isinstance(event, ReceiptsChanged)]


@pytest.fixture
def partitions() -> int:
    return 4


@pytest.fixture
def chat(chat: Chat) -> Chat:
    for gid in ("team", "home"):
        chat.create_group(gid, ["ann", "bob", "cy"])
    return chat


@pytest.fixture
def ann(chat: Chat) -> Sender:
    return Sender(chat)


def receipts_of(events: Sequence[ReceiptsChanged]) -> list[tuple[str, int]]:
    return [(each.msgid, each.read) for event in events for each in event.receipts]


def test_waiting_receipts_come_once_in_pieces_however_many(ann: Sender, chat: Chat) -> None:
    # Given more than several pages in two groups
    sent = ann.say(1100)
    at_home = ann.say(250, "home")
    ann.mark(sent)
    ann.mark(at_home, "home")
    # When
    events = ann.ask()
    # Then
    assert sorted(receipts_of(events)) == sorted((msgid, 0) for msgid in [*sent, *at_home])
    assert max(len(event.receipts) for event in events) <= RECEIPTS_PER_EVENT
    assert {event.sessions for event in events} == {(ann.sessions[0],)}


def test_a_very_long_digest_becomes_several_events(ann: Sender) -> None:
    sent = ann.say(2 * RECEIPTS_PER_EVENT + 1)
    receipts = [Receipt("team", msgid, 1, 1, 1, number) for number, msgid in enumerate(sent, 1)]

    events = ann.push(*receipts)

    assert [len(event.receipts) for event in events] == [RECEIPTS_PER_EVENT, RECEIPTS_PER_EVENT, 1]
    assert [receipt for event in events for receipt in event.receipts] == receipts


def test_a_push_that_was_overtaken_by_asking_is_dropped(ann: Sender, chat: Chat) -> None:
    # Given a digest on its way, and a newer one after which the session asks
    [message] = ann.say(1)
    ann.mark([message])
    older = chat.receipts("ann")[0]
    chat.ack("bob", "team")
    ann.mark([message])
    assert receipts_of(ann.ask()) == [(message, 1)]
    newer = chat.receipts("ann")[0]
    # Then
    assert ann.push(older, newer) == []
    ann.delivery.rotate_versions()
    assert ann.push(older) == []
    # And a later one is not
    chat.ack("cy", "team")
    ann.mark([message])
    assert receipts_of(ann.push(*chat.receipts("ann"))) == [(message, 2)]


def test_versions_are_kept_for_two_heartbeats_only(ann: Sender) -> None:
    [message] = ann.say(1)
    ann.mark([message])
    ann.ask()
    for _ in range(2):
        ann.delivery.rotate_versions()
    assert (ann.delivery._newer, ann.delivery._older) == ({}, {})


def test_fetching_again_and_again_brings_changed_receipts_only(ann: Sender, chat: Chat) -> None:
    first, second = ann.say(2)
    ann.mark([first, second])
    assert len(receipts_of(ann.ask())) == 2
    for _ in range(3):
        ann.delivery.rotate_versions()
        assert ann.ask() == []
    chat.ack("bob", "team", first)
    ann.mark([first])
    ann.delivery.rotate_versions()
    assert receipts_of(ann.ask()) == [(first, 1)]


def test_every_session_gets_every_receipt(chat: Chat) -> None:
    # Given two sessions, one of which has the receipts
    ann = Sender(chat, sessions=2)
    one, other = ann.sessions
    sent = ann.say(2)
    ann.mark(sent)
    assert {event.sessions for event in ann.ask(one)} == {(one,)}
    # Then the other one still is
    assert [(event.sessions, len(event.receipts)) for event in ann.ask(other)] == [((other,), 2)]
    # And a push goes to both
    chat.ack("bob", "team")
    ann.mark(sent)
    events = ann.push(*chat.receipts("ann"))
    assert {session for event in events for session in event.sessions} == {one, other}


def test_another_server_counts_versions_anew(ann: Sender, chat: Chat) -> None:
    [message] = ann.say(1)
    for _ in range(3):
        ann.mark([message])
    ann.ask()
    ann.delivery.forget_versions()
    assert receipts_of(ann.push(Receipt("team", message, 2, 0, 2, 1))) == [(message, 2)]


def test_after_an_error_all_waiting_receipts_still_come(ann: Sender, chat: Chat) -> None:
    sent = ann.say(250)
    ann.mark(sent)
    perform_one = chat.performer.perform_one
    failing = itertools.cycle([False] * 4 + [True])

    def sometimes(effect: Effect) -> Any:
        if next(failing):
            raise RedisUnavailable
        return perform_one(effect)

    ann.delivery.fetch(ann.sessions)
    chat.performer.perform_one = sometimes  # type: ignore[method-assign]
    for _ in range(50):
        try:
            chat.performer.perform(ann.delivery.step())
        except RedisUnavailable:
            continue
    assert ann.delivery.due() > 0
    assert sorted(receipts_of(ann.taken())) == sorted((msgid, 0) for msgid in sent)


# Confirming.


def test_receipts_are_confirmed_in_bounded_calls(ann: Sender, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a sender with very many receipts
    sent = ann.say(1300)
    ann.mark(sent)
    confirmation = ReceiptConfirmation(chat.system.client.space, 1.0, ThrottledLog(lambda: 0.0), lambda: 0.0)
    monkeypatch.setattr(gateway_sessions, "CONFIRMATIONS_PER_STEP", 1200)
    for event in ann.ask():
        confirmation.received("ann", event.receipts)
    sizes: list[int] = []
    perform_one = chat.performer.perform_one

    def counting(effect: Effect) -> Any:
        if isinstance(effect, RedisCalls):
            sizes.extend(len(call.args) // 4 for call in effect.calls if call.function == "im_confirm")
        return perform_one(effect)

    monkeypatch.setattr(chat.performer, "perform_one", counting)
    # When
    assert confirmation.due() == 1.0
    chat.performer.perform(confirmation.step())
    assert sum(sizes) == 1200
    chat.performer.perform(confirmation.step())
    # Then
    assert max(sizes) <= 500
    assert sum(sizes) == 1300
    assert chat.receipts("ann") == []
    assert confirmation.due() > 1e9


def test_the_newer_of_two_receipts_of_a_message_is_confirmed(ann: Sender, chat: Chat) -> None:
    [message] = ann.say(1)
    ann.mark([message])
    older = chat.receipts("ann")
    ann.mark([message])
    confirmation = ReceiptConfirmation(chat.system.client.space, 1.0, ThrottledLog(lambda: 0.0), lambda: 0.0)
    confirmation.received("ann", chat.receipts("ann"))
    confirmation.received("ann", older)

    chat.performer.perform(confirmation.step())

    assert chat.receipts("ann") == []


def test_receipts_that_could_not_be_confirmed_are_confirmed_later(
    ann: Sender, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann.mark(ann.say(3))
    now = 0.0
    confirmation = ReceiptConfirmation(chat.system.client.space, 1.0, ThrottledLog(lambda: now), lambda: now)
    confirmation.received("ann", chat.receipts("ann"))
    now = confirmation.due()
    assert now == 1.0
    with monkeypatch.context() as patch:
        patch.setattr(chat.performer, "perform_one", lambda effect: [RedisRefuses("not now")] * len(effect.calls))
        chat.performer.perform(confirmation.step())
        with pytest.raises(RedisRefuses):
            chat.performer.perform(confirmation.flush(["ann"]))
    assert len(chat.receipts("ann")) == 3
    assert confirmation.due() > 1.0
    for _ in range(2):
        now = min(confirmation.due(), 2.0)
        chat.performer.perform(confirmation.step())
    assert chat.receipts("ann") == []
    assert confirmation.due() == inf


def test_pages_are_small_enough_that_no_step_takes_long() -> None:
    partitions = 8
    assert gateway_sessions.SESSIONS_PER_STEP * gateway_sessions.RECEIPTS_PER_PAGE * partitions <= 30_000
