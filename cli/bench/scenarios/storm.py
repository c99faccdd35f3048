"""The storm: in a group of 200, 40 members are online and ack each message. The yardstick is the literal design.

A cycle: a message is sent, received by all 40, acked by all 40, and the sender knows 40/199. Receipts are folded over
the default window. The designs are apart: before each turn the databases and the workers come to rest.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median
from typing import NamedTuple

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
from imcore.cli.bench.harness.sessions import (
    IN_FLIGHT,
    Confirm,
    SessionCounts,
    SessionPool,
    open_sessions,
)
from imcore.cli.bench.harness.traffic import count_acks, count_rows

WINDOW_MS = 200
CONNECTIONS = (1, 8)
_NAIVE = "the literal design"

_LONE = "40 connections, one message at a time"
_ACKED = "one gateway, clients ack each message"
_DELIVERED = "one gateway, clients say delivered before each ack"
DELIVERED_AIM = Aim("<=", 1.6)
"""Of the CPU of all processes, beside the same clients that only ack."""
CPU_AIM = Aim("<=", 50, of_ratio=False)
"""Microseconds of all processes for a message, with acks of 10."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to live through the storm, with the number of messages that measure it."""

    name: str
    messages: int
    ack_every: int = 1
    separate: bool = False
    """Whether the sessions have 40 connections, not one."""
    aim: Aim | None = None
    cpu_aim: Aim | None = None
    in_flight: int = IN_FLIGHT
    confirms: Sequence[Confirm] = ()
    """Each client confirms each message in these ways; in none if the gateway acks."""


class _Beside(NamedTuple):
    """The name of a contestant that others are compared with, and its figures."""

    name: str
    rounds: Mapping[str, Rounds]


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
        beside, aims = _Beside(_NAIVE, best), {"cycles": variant.aim, CPU_OF_ALL: variant.cpu_aim, **_AIMS}
        if variant.name == _DELIVERED:
            beside, aims = _Beside(_ACKED, rounds[_ACKED]), {CPU_OF_ALL: DELIVERED_AIM, **_AIMS}
        figures += _figures(variant.name, rounds[variant.name], beside, aims)
    for name in naive_names.values():
        figures += _figures(f"{name} (beside a window of {WINDOW_MS} ms)", rounds[name], None, {})
    return figures


def _variants(plan: RoundPlan) -> list[Variant]:
    # A storm must last far longer than the window, since it ends with one more window.
    one, many = plan.size(20_000, 4000), plan.size(60_000, 12_000)
    few = plan.size(2000, 400)
    variants = [
        Variant("one gateway, acks per message, receipts folded", one, aim=Aim(">=", 25)),
        Variant("one gateway, acks of 10, receipts folded", many, 10, aim=Aim(">=", 100), cpu_aim=CPU_AIM),
        Variant("40 connections, acks per message, receipts folded", few, separate=True),
        # One ack of each client for each message: with more in flight a poll brings several, and one ack is for them.
        Variant(_LONE, plan.size(1000, 200), separate=True, in_flight=1),
        Variant(_ACKED, one, confirms=("received",)),
        Variant(_DELIVERED, one, confirms=("delivered", "received")),
        Variant("40 connections, acks of 10, receipts folded", few, 10, separate=True),
    ]
    return variants[:-1] if plan.quick else variants


def _turn(running: RunningServers, variant: Variant, gids: Iterator[str]) -> Measured:
    gid, messages = next(gids), variant.messages
    sessions = open_sessions(
        running.servers, gid, ack_every=variant.ack_every, separate=variant.separate, confirms=variant.confirms
    )
    with sessions as pool:
        pool.in_flight = variant.in_flight
        seen = pool.start_over()
        running.rest()
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
    running.rest()
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
        **shares(delivery_ms, "delivery "),
        **shares(receipt_ms, "receipt "),
        "pushes": seen.pushes / messages,
        "digests": seen.digests / messages,
    }


def shares(samples: Sequence[float], prefix: str = "") -> dict[str, float]:
    """Return the median and the slowest hundredth of some samples."""
    return {f"{prefix}p50": median(samples), f"{prefix}p99": percentile(samples, 0.99)}


_SPEED, _COUNTED = "speed", "counted, per message"
_MOVE_BYTES = "bytes_moves"
"""Of one ack. SQLite does not say how large a table is."""

CPU = "CPU"
CPU_OF_ALL = f"{CPU}: {cpu.ALL}"
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
    subject: str, rounds: Mapping[str, Rounds], beside: _Beside | None, aims: Mapping[str, Aim | None]
) -> Iterator[Figure]:
    yardsticks = {key: Yardstick(beside.name, values) for key, values in beside.rounds.items()} if beside else {}
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
                yardstick=yardsticks.get(key),
                aim=aims.get(key),
            )
    yield from cpu_figures("storm", subject, rounds, yardsticks.get(CPU_OF_ALL), aims.get(CPU_OF_ALL))


def cpu_figures(
    bench: str, subject: str, rounds: Mapping[str, Rounds], yardstick: Yardstick | None, aim: Aim | None = None
) -> Iterator[Figure]:
    """Yield the CPU of each process; the yardstick and the aim are for all of them together."""
    for key in (key for key in rounds if key.startswith(f"{CPU}: ")):
        is_total = key == CPU_OF_ALL
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
