"""Calls that are refused for long are repeated less and less often, and logged once a minute, while others succeed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from imcore import Gateway, Message, Session
from imcore.chat import Chat
from imcore.errors import ConfigurationError, DatabaseUnavailable, ImError, RedisFull, RedisRefuses, RedisUnavailable
from imcore.operations.effects import Effect, SqlQuery
from imcore.settings import Settings
from imcore.streams.aio.pubsub import AsyncSubscription
from imcore.streams.calls.call import Call
from imcore.streams.pubsub import Subscription
from imcore.streams.rounds import Steps
from tests.helpers.async_driver import before_effects
from tests.helpers.gateways import Audience, Clock, kill_connections
from tests.helpers.talk import leave_to_sql, offset, push_receipts, say

TICK_S = 0.05
LONG_S = 60.0
MOST_TRIES = 24
"""Some ten in the first 20 s, then one each 4 s, and each a little later for the ticks."""
ALL, TEAM = frozenset({"team", "home", ""}), frozenset({"team"})

HEARTBEAT_S = 20


pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def redis_url(valkey: str) -> str:
    """One server: what is asked here does not depend on the kind of server."""
    return valkey


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, partitions=1)


@pytest.fixture
def other(other: Chat) -> Chat:
    other.create_group("team", ["ann", "bob"])
    other.create_group("home", ["ann", "bob"])
    return other


class Refusing:
    """Answers calls of a function with `error`, unless that is None, and counts these answers."""

    def __init__(self, chat: Chat, function: str, gids: frozenset[str] = ALL) -> None:
        self.error: ImError | None = None
        self.tries = 0
        self._function, self._gids = function, gids
        self._each, self._start = chat.system.client.each, chat.system.client.start

    def each(self, batch: Sequence[Call[Any]], **options: Any) -> Steps[list[Any]]:
        error = self._error_now(batch)
        return self._answers(batch, error, (yield from self._each(self._others(batch, error), **options)))

    def start(self, batch: Sequence[Call[Any]]) -> Callable[[], list[Any]]:
        error = self._error_now(batch)
        answers = self._start(self._others(batch, error))
        return lambda: self._answers(batch, error, answers())

    async def start_async(self, batch: Sequence[Call[Any]], start: Callable[..., Any]) -> Callable[[], Any]:
        error = self._error_now(batch)
        answers = await start(self._others(batch, error))

        async def finish() -> list[Any]:
            return self._answers(batch, error, await answers())

        return finish

    def _error_now(self, batch: Sequence[Call[Any]]) -> ImError | None:
        self.tries += self.error is not None and any(map(self._concerns, batch))
        return self.error

    def _others(self, batch: Sequence[Call[Any]], error: ImError | None) -> list[Call[Any]]:
        return [call for call in batch if not (error and self._concerns(call))]

    def _answers(self, batch: Sequence[Call[Any]], error: ImError | None, others: Sequence[Any]) -> list[Any]:
        left = iter(others)
        return [error if error and self._concerns(call) else next(left) for call in batch]

    def _concerns(self, call: Call[Any]) -> bool:
        return call.function == self._function and (call.gid or "") in self._gids


def refusing(chat: Chat, function: str, gids: frozenset[str] = ALL) -> Refusing:
    refuser = Refusing(chat, function, gids)
    chat.system.client.each = refuser.each  # type: ignore[assignment, method-assign]
    chat.system.client.start = refuser.start  # type: ignore[method-assign]
    chat.start_async = refuser.start_async  # type: ignore[attr-defined]
    return refuser


def pass_time(audience: Audience, clock: Clock, other: Chat, *, seconds: float = LONG_S) -> list[tuple[str, int]]:
    """Let time pass while ann sends messages to bob. Return their gids and seqs."""
    sent: list[Message] = []
    for tick in range(round(seconds / TICK_S)):
        clock.jump(TICK_S)
        audience.poll(0)
        if tick % 25 == 0:
            for gid in ("team", "home"):
                sent += say(other, str(tick), gid=gid)
        if tick % 200 == 0:
            push_receipts(other, sent[-1])
    return [(message.gid, message.seq) for message in sent]


def assert_heard(audience: Audience, session: Session, sent: Sequence[tuple[str, int]]) -> None:
    """Assert that each message comes once, and those of each group in order."""
    messages = audience.messages[session]
    audience.until(lambda: set(sent) <= {(message.gid, message.seq) for message in messages})
    heard = [(message.gid, message.seq) for message in messages]
    assert len(heard) == len(set(heard))
    for gid in ("team", "home"):
        seqs = [seq for of, seq in heard if of == gid]
        assert seqs == sorted(seqs)


def ask_again(gateway: Gateway) -> None:
    """Let all pull the messages that were not pushed, and get the receipts that wait for them."""
    core = gateway._core
    for gid in ("team", "home"):
        core._fetch_missed(core._channels.open_group(gid))
    core._catch_up.to_resync.add(core.sessions)


REFUSALS = [RedisRefuses("too few replicas"), RedisFull("no room"), RedisUnavailable("no node"), ImError("by hand")]
FUNCTIONS = ["im_heartbeat", "im_confirm", "im_pull", "im_dirty_receipts", "im_tally"]


@pytest.mark.parametrize(
    ("function", "gids", "error"),
    [
        *(("im_ack", ALL, error) for error in REFUSALS),
        *((function, ALL, REFUSALS[number % 4]) for number, function in enumerate(FUNCTIONS)),
        *((function, TEAM, REFUSALS[number]) for number, function in enumerate(["im_ack", "im_tally", "im_pull"])),
        ("im_ack", TEAM, REFUSALS[3]),
    ],
    ids=lambda each: f"in {len(each)}" if isinstance(each, frozenset) else str(each),
)
def test_a_refused_call_is_tried_less_and_less_often(
    chat: Chat,
    other: Chat,
    clock: Clock,
    function: str,
    gids: frozenset[str],
    error: ImError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a session, and one function that is refused from now on
    refused = refusing(chat, function, gids)
    with chat.gateway(receipts="poll") as gateway:
        audience = Audience(gateway)
        bob, ann = gateway.open("bob"), gateway.open("ann")
        audience.settled()
        push_receipts(other, say(other, "read")[0])
        ask_again(gateway)
        refused.error = error
        # When time passes
        sent = pass_time(audience, clock, other)
        # Then
        assert refused.tries <= MOST_TRIES
        assert len(caplog.records) <= 2, "one warning a minute"
        # And nothing is missing once it is not refused any more
        refused.error = None
        sent += pass_time(audience, clock, other, seconds=HEARTBEAT_S + 5)
        assert_heard(audience, bob, sent)
        assert other.online(["ann", "bob"]) == {"ann", "bob"}
        assert audience.receipts[ann]
    assert offset(other, "bob") == offset(other, "ann")


def test_acks_that_wait_in_one_group_do_not_pile_up(
    chat: Chat, other: Chat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refusing(chat, "im_ack", TEAM)
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        audience.settled()
        refused.error = ImError("by hand")
        pass_time(audience, clock, other, seconds=20)
        assert len(gateway._core._acks.buffers["read"]._requeued) == 1
        assert offset(other, "bob", "home")
        refused.error = None
        pass_time(audience, clock, other, seconds=5)
    assert {each.unread for each in other.unread("bob")} == {0}


def test_deliveries_that_are_refused_wait_and_arrive(chat: Chat, other: Chat, clock: Clock) -> None:
    refused = refusing(chat, "im_delivered", TEAM)
    with chat.gateway(acks="client") as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        [message] = say(other, "1")
        audience.until(lambda: audience.heard(bob))
        refused.error = ImError("by hand")
        gateway.delivered(bob, "team", message.msgid)
        pass_time(audience, clock, other, seconds=5)
        assert other.tally("team", message.msgid).delivered == 0
        assert refused.tries <= MOST_TRIES
        refused.error = None
        pass_time(audience, clock, other, seconds=60)
        assert other.message_status("team", message.msgid).delivered_to == ("bob",)


def test_a_database_that_is_away_is_asked_less_and_less_often(
    chat: Chat, other: Chat, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given bob, whose missed messages of one group are in SQL only
    leave_to_sql(chat, say(chat, "1", "2")[0].msgid)
    sql_queries = []
    away = True

    def refuse_if_away(question: Effect[Any]) -> None:
        if isinstance(question, SqlQuery) and away:
            sql_queries.append(question)
            raise DatabaseUnavailable("PostgreSQL is away")

    before_effects(chat, monkeypatch, refuse_if_away)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        # When
        pass_time(audience, clock, other)
        # Then
        assert 5 <= len(sql_queries) <= MOST_TRIES
        assert len(caplog.records) <= 2
        assert audience.heard(bob, "home")
        away = False
        pass_time(audience, clock, other, seconds=5)
        assert audience.heard(bob)[:2] == ["1", "2"]


@pytest.mark.parametrize("step", ["Listen", "change"])
def test_a_subscription_that_does_not_come_about_is_tried_less_and_less_often(
    chat: Chat,
    other: Chat,
    clock: Clock,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = []

    def refuse(*_: object) -> None:
        tries.append(1)
        raise RedisUnavailable("no connection is left")

    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        with monkeypatch.context() as patch:
            patch.setattr(Subscription, "__init__" if step == "Listen" else "change", refuse)
            patch.setattr(AsyncSubscription, "open" if step == "Listen" else "change", refuse)
            gateway._core.subscription_lost(RedisUnavailable("lost"))
            sent = pass_time(audience, clock, other)
        assert 5 <= len(tries) <= MOST_TRIES
        assert len(caplog.records) <= 2
        sent += pass_time(audience, clock, other, seconds=5)
        assert_heard(audience, bob, sent)


def test_a_subscription_that_is_cut_again_and_again_is_opened_less_and_less_often(
    chat: Chat, other: Chat, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = []

    for kind in (Subscription, AsyncSubscription):

        def count(self: Any, *names: Sequence[str], change: Callable[..., Any] = kind.change) -> Any:
            opened.append(self)
            return change(self, *names)

        monkeypatch.setattr(kind, "change", count)
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        opened.clear()
        sent = []
        for _ in range(round(LONG_S)):
            kill_connections(other.system.client.driver, "pubsub")
            sent += pass_time(audience, clock, other, seconds=1)
        assert len(set(opened)) <= MOST_TRIES
        assert len(caplog.records) <= 2
        # And all is well once that ends
        sent += pass_time(audience, clock, other, seconds=2 * HEARTBEAT_S)
        assert_heard(audience, bob, sent)
    assert {each.unread for each in other.unread("bob")} == {0}


def test_a_subscription_that_is_refused_while_it_is_read_is_opened_again_and_leaves_no_hole(
    chat: Chat, other: Chat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = ConfigurationError("no right to the channel")

    read, take = Subscription.read, AsyncSubscription.take

    def read_and_fail(*arguments: Any) -> None:
        read(*arguments)
        raise refused

    def take_and_fail(subscription: AsyncSubscription) -> list[object]:
        take(subscription)
        subscription.error = refused
        return []

    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.settled()
        # When reading is refused once, and what was pushed is lost with that
        with monkeypatch.context() as patch:
            patch.setattr(Subscription, "read", read_and_fail)
            patch.setattr(AsyncSubscription, "take", take_and_fail)
            sent = say(other, "lost", gid="team")
            with pytest.raises(ConfigurationError, match="no right"):
                audience.until(lambda: False)
        # Then all comes long before the next heartbeat
        sent += say(other, "found", gid="home")
        heard = [(message.gid, message.seq) for message in sent]
        for _ in range(round(HEARTBEAT_S / 2 / TICK_S)):
            clock.jump(TICK_S)
            audience.poll(0.01)
        assert_heard(audience, bob, heard)


def test_a_goodbye_that_is_refused_is_tried_less_and_less_often(
    chat: Chat, other: Chat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refusing(chat, "im_end_session")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob, _ = gateway.open("bob"), gateway.open("ann")
        audience.settled()
        refused.error = RedisRefuses("too few replicas")
        gateway.end(bob, clean=False)
        pass_time(audience, clock, other)
        assert 5 <= refused.tries <= MOST_TRIES
        refused.error = None
        pass_time(audience, clock, other, seconds=5)
        assert other.online(["ann", "bob"]) == {"ann"}


def test_an_absent_node_stops_no_session_on_the_others(
    chat: Chat, other: Chat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a group on a node that is away: of its calls alone each says so
    refused = refusing(chat, "im_pull", TEAM)
    refused.error = RedisUnavailable("a node is away")
    say(other, *map(str, range(1200)), gid="home")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        # Then what was missed in another group comes, page by page
        audience.until(lambda: len(audience.heard(bob, "home")) == 1200, timeout_s=5)


def test_an_error_that_waiting_does_not_mend_is_raised_while_others_continue(
    chat: Chat, other: Chat, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = refusing(chat, "im_ack", TEAM)
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        gateway.open("bob")
        audience.settled()
        refused.error = ConfigurationError("no right to ack")
        with pytest.raises(ConfigurationError, match="no right"):
            pass_time(audience, clock, other, seconds=5)
        refused.error = None
