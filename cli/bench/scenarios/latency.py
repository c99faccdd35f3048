"""The way of one message at a time: to 40 live sessions, with receipts back; and of an ack to another device."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any

from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, Rounds, Yardstick, interleave
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.sessions import DEADLINE_S, ONLINE, SessionPool, open_sessions
from imcore.cli.bench.harness.traffic import TEXT
from imcore.cli.bench.scenarios.storm import shares
from imcore.errors import ImError
from imcore.gateway.fanout import Event, NewMessage, PositionMoved, Session
from imcore.gateway.gateway import Gateway
from imcore.model.values import Message
from imcore.streams.client import open_client
from imcore.streams.cluster import server_of

_BARE = f"bare PUBLISH to {ONLINE} connections"
_IS_SEPARATE = {"one gateway": False, "40 connections": True}
_PARTS = {"sent": "from send to the last of 40", "receipt": "from the last ack to the sender's full tally"}
_OTHER_DEVICE = "another device of the user"
_SHARES = ("p50", "p99")
_AIM = Aim("<=", 3)
_POSITION_AIM = Aim("<=", 50_000, of_ratio=False)
"""Beyond the window, which is 0 here."""


def run_latency(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure the way of one message at a time, on one gateway and on 40 connections, with a window of 0; and of an ack
    to the other devices of its user.

    The yardstick is a bare PUBLISH to 40 subscribers on connections of their own, which one thread reads in turn
    through the same client as it reads the sessions.
    """
    messages = plan.size(200, 40)
    servers = servers.using(servers.tables(), receipt_window_ms=0)
    contestants: dict[str, Callable[[], Measured]] = {}
    with ExitStack() as things:
        things.enter_context(servers.running("receipts"))
        for name, separate in _IS_SEPARATE.items():
            pool = things.enter_context(open_sessions(servers, f"{servers.name}-{name[:2]}", separate=separate))
            contestants[name] = partial(_latency_turn, pool, messages)
        devices = things.enter_context(_two_devices(servers))
        contestants[_OTHER_DEVICE] = lambda: shares([devices() for _ in range(messages)])
        publish = things.enter_context(_subscribers(servers))
        contestants[_BARE] = lambda: shares([publish() for _ in range(messages)])
        rounds = interleave(contestants, plan, progress)
    return list(_latency_figures(rounds))


def _latency_figures(rounds: dict[str, dict[str, Rounds]]) -> Iterator[Figure]:
    figure = partial(Figure, bench="storm", unit="us")
    for name, (part, what), share in product(_IS_SEPARATE, _PARTS.items(), _SHARES):
        yield figure(
            subject=name,
            what=f"{what}, {share}",
            charted=share == "p50",
            rounds=rounds[name][f"{part} {share}"],
            yardstick=Yardstick(_BARE, rounds[_BARE][share]),
            aim=_AIM,
        )
    for share in _SHARES:
        yield figure(
            subject=_OTHER_DEVICE,
            what=f"from an ack until it knows, {share}",
            charted=share == "p50",
            rounds=rounds[_OTHER_DEVICE][share],
            aim=_POSITION_AIM,
        )
        yield figure(subject=_BARE, what=share, charted=share == "p50", rounds=rounds[_BARE][share])


def _latency_turn(pool: SessionPool, messages: int) -> Measured:
    seen = pool.start_over()
    receipt_us = []
    for _ in range(messages):
        seqs = pool.send(1)
        pool.poll_until_in(seqs, seen.arrived)
        began = time.perf_counter()  # the next poll sends the acks
        pool.poll_until_in(seqs, seen.known)
        receipt_us.append((seen.known[seqs[0]] - began) * 1e6)
    sent_us = [(seen.arrived[seq] - at) * 1e6 for seq, at in seen.sent.items()]
    return {**shares(sent_us, "sent "), **shares(receipt_us, "receipt ")}


@contextmanager
def _two_devices(servers: BenchServers) -> Iterator[Callable[[], float]]:
    """Open two sessions of one user, on two gateways. Yield a function that lets one of them read a message, and
    returns the us from its ack until the other one knows.
    """
    sender, user, gid = (f"{servers.name}-{name}" for name in ("sender", "user", "devices"))
    with ExitStack() as things:
        chat = things.enter_context(servers.chat())
        chat.create_group(gid, [sender, user])
        one, other = (
            things.enter_context(things.enter_context(servers.chat()).gateway(acks="client", ack_every=1))
            for _ in range(2)
        )
        session, _ = one.open(user), other.open(user)
        yield partial(_read, partial(chat.send, gid, TEXT, sender_uid=sender), one, session, other)


def _read(send: Callable[[], Message], one: Gateway, session: Session, other: Gateway) -> float:
    sent = send()
    _poll_until(one, NewMessage, other)
    began = time.perf_counter()
    one.received(session, sent.gid, sent.msgid)
    _poll_until(other, PositionMoved, one)
    return (time.perf_counter() - began) * 1e6


def _poll_until(gateway: Gateway, kind: type[Event], other: Gateway) -> None:
    """Poll two gateways in turn, until one of them has an event of a kind."""
    give_up = time.perf_counter() + DEADLINE_S
    is_there = False
    while not is_there:
        other.poll(0.0)
        is_there = any(isinstance(event, kind) for event in gateway.poll(0.001))
        if time.perf_counter() > give_up:
            raise ImError(f"{kind.__name__} took longer than {DEADLINE_S} s")


@contextmanager
def _subscribers(servers: BenchServers) -> Iterator[Callable[[], float]]:
    """Subscribe on 40 connections. Yield a function that publishes, and returns the us to the last one."""
    channel = f"im:{{0}}:{servers.name}-bare"
    with open_client(servers.settings.redis_url) as client, ExitStack() as things:
        server = server_of(client, channel)
        subscribers: list[Any] = []
        for _ in range(ONLINE):
            subscriber: Any = server.pubsub()
            things.callback(subscriber.close)
            subscriber.ssubscribe(channel)
            subscriber.get_message(timeout=DEADLINE_S)
            subscribers.append(subscriber)
        yield partial(_publish, server, channel, subscribers)


def _publish(client: Any, channel: str, subscribers: list[Any]) -> float:
    began = time.perf_counter()
    client.execute_command("SPUBLISH", channel, TEXT)
    waiting = list(subscribers)
    while waiting:
        waiting = [subscriber for subscriber in waiting if subscriber.get_message(timeout=0.0) is None]
        if time.perf_counter() - began > DEADLINE_S:
            raise ImError(f"a bare PUBLISH has not reached {len(waiting)} of its subscribers")
    return (time.perf_counter() - began) * 1e6
