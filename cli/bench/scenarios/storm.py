"""The storm: in a group of 200, 40 members are online and ack each message. The yardstick is the literal design.

A cycle: a message is sent, received by all 40, acked by all 40, and the sender knows 40/199. Receipts are folded over
the default window.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from statistics import median
from typing import Any

from imcore.cli.bench.baseline.naive_design import NaiveDesign, open_naive, play
from imcore.cli.bench.harness import cpu
from imcore.cli.bench.harness.databases import POSTGRES
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
from imcore.cli.bench.harness.servers import BenchServers, RunningServers
from imcore.cli.bench.harness.sessions import DEADLINE_S, ONLINE, SessionCounts, SessionPool, open_sessions
from imcore.cli.bench.harness.traffic import TEXT, count_acks, count_rows
from imcore.errors import ImError
from imcore.streams.client import open_client

WINDOW_MS = 200
CONNECTIONS = (1, 8)
_NAIVE = "the literal design"

_BARE = f"bare PUBLISH to {ONLINE} connections"
_IS_SEPARATE = {"one gateway": False, "40 connections": True}
_PARTS = {"sent": "from send to the last of 40", "receipt": "from the last ack to the sender's full tally"}
_SHARES = ("p50", "p99")
_LATENCY_AIM = Aim("<=", 3)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to live through the storm, with the number of messages that measure it."""

    name: str
    messages: int
    ack_every: int = 1
    separate: bool = False
    """Whether the sessions have 40 connections, not one."""
    aim: Aim | None = None


def run_storm(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure every variant, and the literal design in the same rounds."""
    servers = servers.using(servers.tables(), receipt_window_ms=WINDOW_MS)
    gids = (f"{servers.name}-storm-{number}" for number in count())
    with open_naive(servers) as naive, servers.running("persist", "receipts") as running:
        variants = _variants(plan)
        contestants: dict[str, Callable[[], Measured]] = {v.name: partial(_turn, running, v, gids) for v in variants}
        naive_names = {n: f"{_NAIVE}, {n} connection{'s' * (n > 1)}" for n in CONNECTIONS}
        for connections, name in naive_names.items():
            contestants[name] = partial(_naive_turn, running, naive, connections, plan.size(60, 10))
        rounds = interleave(contestants, plan, progress)
    best = max((rounds[name] for name in naive_names.values()), key=lambda measured: measured["cycles"].median)
    figures: list[Figure] = []
    for variant in variants:
        figures += _figures(variant.name, rounds[variant.name], best, {"cycles": variant.aim, **_AIMS})
    for name in naive_names.values():
        figures += _figures(f"{name} (beside a window of {WINDOW_MS} ms)", rounds[name], {}, {})
    return figures


def _variants(plan: RoundPlan) -> list[Variant]:
    # A storm must last far longer than the window, since it ends with one more window.
    one, many = plan.size(20_000, 4000), plan.size(60_000, 12_000)
    few = plan.size(2000, 400)
    variants = [
        Variant("one gateway, acks per message, receipts folded", one, aim=Aim(">=", 20)),
        Variant("one gateway, acks of 10, receipts folded", many, 10, aim=Aim(">=", 100)),
        Variant("40 connections, acks per message, receipts folded", few, separate=True),
        Variant("40 connections, acks of 10, receipts folded", few, 10, separate=True),
    ]
    return variants[:3] if plan.quick else variants


def _turn(running: RunningServers, variant: Variant, gids: Iterator[str]) -> Measured:
    gid, messages = next(gids), variant.messages
    with open_sessions(running.servers, gid, ack_every=variant.ack_every, separate=variant.separate) as pool:
        seen = pool.start_over()
        running.wait_until_stored()
        clocks, before = running.clocks(), _counts(running, gid)
        began = cpu.read(clocks)
        seen.began = time.perf_counter()
        _storm(pool, messages)
        running.workers.watch()
        measured = _measured(seen, messages)
        running.wait_until_stored()
        measured["stored"] = messages / (time.perf_counter() - seen.began)
        measured |= cpu_spent(began, clocks, messages)
        windows = (max(seen.known.values()) - min(seen.sent.values())) * 1000 / WINDOW_MS
        measured["digests_per_window"] = seen.digests / max(1.0, windows)
        grown = _growth(before, _counts(running, gid), messages)
        if _MOVE_BYTES in grown:
            grown[_MOVE_BYTES] /= grown["acks"]
        return measured | grown


def _counts(running: RunningServers, gid: str) -> dict[str, float]:
    maker, url = running.servers.maker, running.servers.settings.database_url
    counts: dict[str, float] = {
        "acks": count_acks(running.chat, gid),
        **count_rows(running.chat, gid),
        "bytes_sql": maker.bytes_of(url),
    }
    return counts | ({_MOVE_BYTES: maker.bytes_of(url, "offset_moves")} if maker.kind == POSTGRES else {})


def _naive_turn(running: RunningServers, naive: NaiveDesign, connections: int, messages: int) -> Measured:
    servers = running.servers
    clocks, before = running.clocks(), _naive_counts(servers, naive)
    began = cpu.read(clocks)
    measured = _measured(play(naive, connections, messages), messages) | cpu_spent(began, clocks, messages)
    growth = _growth(before, _naive_counts(servers, naive), messages)
    return {**measured, "stored": measured["cycles"], **growth}


def _naive_counts(servers: BenchServers, naive: NaiveDesign) -> dict[str, float]:
    with naive.store() as store:
        messages, receipts = store.count_rows()
    bytes_sql = servers.maker.bytes_of(naive.url)
    return {"rows_messages": messages, "rows_receipts": receipts, "bytes_sql": bytes_sql}


def _growth(before: Measured, after: Measured, messages: int) -> dict[str, float]:
    return {key: (after[key] - before[key]) / messages for key in after}


def _storm(pool: SessionPool, messages: int) -> None:
    """Send the messages, and poll until the sender knows of the last one."""
    seqs: list[int] = []
    while len(seqs) < messages:
        seqs += pool.send_when_free(messages - len(seqs))
        pool.poll()
    pool.poll_until_in(seqs, pool.seen.known)


def cpu_spent(began: Mapping[str, float], clocks: cpu.Clocks, messages: int) -> dict[str, float]:
    """Return what each process has spent for a message since `began`."""
    return {f"{CPU}: {name}": us for name, us in cpu.spent(began, cpu.read(clocks), messages).items()}


def _measured(seen: SessionCounts, messages: int) -> dict[str, float]:
    delivery_ms = [(seen.arrived[seq] - at) * 1000 for seq, at in seen.sent.items()]
    receipt_ms = [(seen.known[seq] - seen.arrived[seq]) * 1000 for seq in seen.sent]
    return {
        "cycles": messages / (max(seen.known.values()) - seen.began),
        **_shares(delivery_ms, "delivery "),
        **_shares(receipt_ms, "receipt "),
        "pushes": seen.pushes / messages,
        "digests": seen.digests / messages,
    }


_SPEED, _COUNTED = "speed", "counted, per message"
_MOVE_BYTES = "bytes_moves"
"""Of one ack. SQLite does not say how large a table is."""

CPU = "CPU"
CPU_TABLE = "CPU, per message"

_MEASURES = {
    "cycles": (_SPEED, "cycles", "1/s"),
    "stored": (_SPEED, "cycles, in SQL too", "1/s"),
    "delivery p50": (_SPEED, "send to last of 40, p50", "ms"),
    "delivery p99": (_SPEED, "send to last of 40, p99", "ms"),
    "receipt p50": (_SPEED, "from there to 40/199, p50", "ms"),
    "receipt p99": (_SPEED, "from there to 40/199, p99", "ms"),
    "pushes": (_COUNTED, "received", ""),
    "acks": (_COUNTED, "acks", ""),
    "digests": (_COUNTED, "receipt frames", ""),
    "digests_per_window": (_COUNTED, f"receipt frames in {WINDOW_MS} ms", ""),
    "rows_messages": (_COUNTED, "SQL rows: message", ""),
    "rows_receipts": (_COUNTED, "SQL rows: receipts", ""),
    "rows_moves": (_COUNTED, "SQL rows: offset moves", ""),
    "bytes_sql": (_COUNTED, "SQL bytes", "B"),
    _MOVE_BYTES: (_COUNTED, "SQL bytes of offset moves, per ack", "B"),
}
"""The table, the name and the unit of each measure."""

_AIMS = {
    "digests_per_window": Aim("<=", 1, of_ratio=False),
    "rows_messages": Aim("<=", 1, of_ratio=False),
    "rows_moves": Aim("<=", 2, of_ratio=False),
    _MOVE_BYTES: Aim("<=", 20, of_ratio=False),
}


def _figures(
    subject: str, rounds: Mapping[str, Rounds], naive: Mapping[str, Rounds], aims: Mapping[str, Aim | None]
) -> Iterator[Figure]:
    for key, (table, what, unit) in _MEASURES.items():
        if key in rounds:
            yield Figure(
                bench="storm",
                subject=subject,
                what=what,
                unit=unit,
                table=table,
                charted=key == "cycles",
                rounds=rounds[key],
                yardstick=Yardstick(_NAIVE, naive[key]) if key in naive else None,
                aim=aims.get(key),
            )
    yield from cpu_figures("storm", subject, rounds, Yardstick(_NAIVE, naive[f"{CPU}: {cpu.ALL}"]) if naive else None)


def cpu_figures(
    bench: str, subject: str, rounds: Mapping[str, Rounds], yardstick: Yardstick | None, aim: Aim | None = None
) -> Iterator[Figure]:
    """Yield the CPU of each process; the yardstick and the aim are for all of them together."""
    for key in (key for key in rounds if key.startswith(f"{CPU}: ")):
        is_total = key == f"{CPU}: {cpu.ALL}"
        yield Figure(
            bench=bench,
            subject=subject,
            what=key,
            unit="us",
            table=CPU_TABLE,
            rounds=rounds[key],
            yardstick=yardstick if is_total else None,
            aim=aim if is_total else None,
        )


def run_latency(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure the way of one message at a time, on one gateway and on 40 connections, with a window of 0.

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
        publish = things.enter_context(_subscribers(servers))
        contestants[_BARE] = lambda: _shares([publish() for _ in range(messages)])
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
            aim=_LATENCY_AIM,
        )
    for share in _SHARES:
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
    return {**_shares(sent_us, "sent "), **_shares(receipt_us, "receipt ")}


def _shares(samples: Sequence[float], prefix: str = "") -> Measured:
    return {f"{prefix}p50": median(samples), f"{prefix}p99": percentile(samples, 0.99)}


@contextmanager
def _subscribers(servers: BenchServers) -> Iterator[Callable[[], float]]:
    """Subscribe on 40 connections. Yield a function that publishes, and returns the us to the last one."""
    channel = f"im:{{0}}:{servers.name}-bare"
    with open_client(servers.settings.redis_url) as client, ExitStack() as things:
        subscribers: list[Any] = []
        for _ in range(ONLINE):
            subscriber: Any = client.pubsub()
            things.callback(subscriber.close)
            subscriber.ssubscribe(channel)
            subscriber.get_message(timeout=DEADLINE_S)
            subscribers.append(subscriber)
        yield partial(_publish, client, channel, subscribers)


def _publish(client: Any, channel: str, subscribers: list[Any]) -> float:
    began = time.perf_counter()
    client.execute_command("SPUBLISH", channel, TEXT)
    waiting = list(subscribers)
    while waiting:
        waiting = [subscriber for subscriber in waiting if subscriber.get_message(timeout=0.0) is None]
        if time.perf_counter() - began > DEADLINE_S:
            raise ImError(f"a bare PUBLISH has not reached {len(waiting)} of its subscribers")
    return (time.perf_counter() - began) * 1e6
