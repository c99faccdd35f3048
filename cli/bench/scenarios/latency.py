"""The storm with one message at a time: the time to the last of 40 live sessions, and back with their acks.

The yardsticks are a bare PUBLISH to 40 subscribers on connections of their own, which one thread reads in turn through
the same client as it reads the sessions, and, for a gateway's one connection, to a single subscriber.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from statistics import median
from typing import Any

from imcore.cli.bench.harness.figures import (
    Aim,
    Figure,
    Measured,
    Progress,
    RoundPlan,
    Rounds,
    Yardstick,
    interleave,
    percentile,
)
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.sessions import DEADLINE_S, ONLINE, Mode, SessionPool, open_sessions
from imcore.cli.bench.harness.traffic import TEXT
from imcore.errors import ImError
from imcore.streams.client import open_client

_SUBSCRIBERS = {f"bare PUBLISH to {ONLINE} connections": ONLINE, "bare PUBLISH to 1 connection": 1}
_TOPOLOGIES = {"one gateway": Mode(), "40 connections": Mode(separate=True)}
_PARTS = {"sent": "from send to the last of 40", "receipt": "from the last ack to the sender's full tally"}
_SHARES = ("p50", "p99")
_AIM = Aim("<=", 3)


def run_latency(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure both, with sessions on one gateway and on 40 connections, and with a window of 0."""
    messages = plan.size(200, 40)
    servers = servers.using(servers.tables(), receipt_window_ms=0)
    contestants: dict[str, Callable[[], Measured]] = {}
    with ExitStack() as things:
        things.enter_context(servers.running("receipts"))
        for name, mode in _TOPOLOGIES.items():
            pool = things.enter_context(open_sessions(servers, f"{servers.name}-{name[:2]}", mode))
            contestants[name] = partial(_turn, pool, messages)
        for name, count in _SUBSCRIBERS.items():
            publish = things.enter_context(_subscribers(servers, count))
            contestants[name] = partial(_bare_turn, publish, messages)
        rounds = interleave(contestants, plan, progress)
    return list(_figures(rounds))


def _figures(rounds: dict[str, dict[str, Rounds]]) -> Iterator[Figure]:
    figure, yardstick = partial(Figure, bench="storm", unit="us"), next(iter(_SUBSCRIBERS))
    for name, (part, what), share in product(_TOPOLOGIES, _PARTS.items(), _SHARES):
        yield figure(
            subject=name,
            what=f"{what}, {share}",
            charted=share == "p50",
            rounds=rounds[name][f"{part} {share}"],
            yardstick=Yardstick(yardstick, rounds[yardstick][share]),
            aim=_AIM,
        )
    for name, share in product(_SUBSCRIBERS, _SHARES):
        yield figure(subject=name, what=share, charted=share == "p50", rounds=rounds[name][share])


def _turn(pool: SessionPool, messages: int) -> Measured:
    seen = pool.start_over()
    receipt_us = []
    for _ in range(messages):
        seqs = pool.send(1)
        pool.poll_until_in(seqs, seen.arrived)
        began = time.perf_counter()  # the next poll sends the acks
        pool.poll_until_in(seqs, seen.known)
        receipt_us.append((seen.known[seqs[0]] - began) * 1e6)
    sent_us = [(seen.arrived[seq] - at) * 1e6 for seq, at in seen.sent.items()]
    return {**_shares(sent_us, "sent "), **_shares(receipt_us, "receipt ")}


def _shares(samples: Sequence[float], prefix: str = "") -> Measured:
    return {f"{prefix}p50": median(samples), f"{prefix}p99": percentile(samples, 0.99)}


def _bare_turn(publish: Callable[[], float], messages: int) -> Measured:
    return _shares([publish() for _ in range(messages)])


@contextmanager
def _subscribers(servers: BenchServers, count: int) -> Iterator[Callable[[], float]]:
    """Subscribe on connections of their own. Yield a function that publishes; it returns the microseconds to the last."""
    channel = f"im:{{0}}:{servers.name}-bare-{count}"
    with open_client(servers.settings.redis_url) as client, ExitStack() as things:
        subscribers: list[Any] = []
        for _ in range(count):
            subscriber: Any = client.pubsub()
            things.callback(subscriber.close)
            subscriber.ssubscribe(channel)
            subscriber.get_message(timeout=DEADLINE_S)
            subscribers.append(subscriber)
        yield partial(_publish, client, channel, subscribers)


def _publish(client: Any, channel: str, subscribers: list[Any]) -> float:
    timeout_s = DEADLINE_S if len(subscribers) == 1 else 0.0
    began = time.perf_counter()
    client.execute_command("SPUBLISH", channel, TEXT)
    waiting = list(subscribers)
    while waiting:
        waiting = [each for each in waiting if each.get_message(timeout=timeout_s) is None]
        if time.perf_counter() - began > DEADLINE_S:
            raise ImError(f"a bare PUBLISH has not reached {len(waiting)} of its subscribers")
    return (time.perf_counter() - began) * 1e6
