"""The storm: a group of 200, 40 online, all of whom confirm each message, beside the literal design.

A cycle: a message is sent, received by all 40, acked by all 40, and the sender knows 40/199. Receipts are pushed at
once (window 0), folded over the default window and pushed, or polled with heartbeats.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from statistics import median
from typing import NamedTuple

from imcore.chat import Chat
from imcore.cli.bench.baseline.naive_design import NaiveDesign, open_naive, play
from imcore.cli.bench.harness import counters
from imcore.cli.bench.harness.figures import Aim, Figure, Yardstick
from imcore.cli.bench.harness.servers import BenchServers, backlog
from imcore.cli.bench.harness.sessions import Mode, SessionCounts, SessionPool, open_sessions
from imcore.cli.bench.harness.timing import Measured, Progress, RoundPlan, Rounds, interleave, percentile
from imcore.cli.sandbox import Processes

WINDOW_MS = 200
CONNECTIONS = (1, 8)
_NAIVE = "the literal design"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to live through the storm, with the number of messages that measure it."""

    name: str
    mode: Mode
    messages: int
    aim: Aim | None = None
    folds: bool = False
    """Whether its receipts are folded over a window, and then pushed."""


class _Stage(NamedTuple):
    """What all variants of one window share."""

    servers: BenchServers
    chat: Chat
    workers: Processes


def run_storm(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure every variant, and the literal design in the same rounds."""
    figures: list[Figure] = []
    url = servers.tables()
    with open_naive(servers) as naive:
        for window_ms, variants in _variants(plan).items():
            windowed = servers.using(url, receipt_window_ms=window_ms)
            with windowed.running_workers("persist", "receipts") as workers, windowed.chat() as chat:
                figures += _measure(_Stage(windowed, chat, workers), naive, variants, plan, progress)
    return figures


def _variants(plan: RoundPlan) -> Mapping[int, list[Variant]]:
    """Return the variants by the window that the worker `receipts` has for them."""
    # Long beside the window, which each storm waits out once more at its end.
    one, many = plan.size(20_000, 4000), plan.size(60_000, 12_000)
    few = plan.size(400, 100)
    folded = [
        Variant("one gateway, acks per message, receipts folded", Mode(), one, Aim(">=", 20), folds=True),
        Variant("one gateway, acks of 10, receipts folded", Mode(10), many, Aim(">=", 100), folds=True),
        Variant("40 connections, acks per message, receipts folded", Mode(separate=True), few, folds=True),
        Variant("40 connections, acks of 10, receipts folded", Mode(10, separate=True), few, folds=True),
    ]
    pushed = [replace(v, name=v.name.replace("folded", "pushed"), aim=None, folds=False) for v in folded]
    polled = [
        replace(v, name=v.name.replace("pushed", "polled"), mode=replace(v.mode, receipts="poll")) for v in pushed
    ]
    if plan.quick:
        return {WINDOW_MS: folded[:3], 0: pushed[:1]}
    return {WINDOW_MS: [*folded, *polled], 0: pushed}


def _measure(
    stage: _Stage, naive: NaiveDesign, variants: list[Variant], plan: RoundPlan, progress: Progress
) -> list[Figure]:
    window_ms = stage.servers.settings.receipt_window_ms
    gids = (f"{stage.servers.name}-storm-{window_ms}-{number}" for number in count())
    contestants: dict[str, Callable[[], Measured]] = {v.name: partial(_turn, stage, v, gids) for v in variants}
    naive_names = {n: f"{_NAIVE}, {n} connection{'s' * (n > 1)}" for n in CONNECTIONS}
    for connections, name in naive_names.items():
        contestants[name] = partial(_naive_turn, naive, connections, plan.size(60, 10))
    rounds = interleave(contestants, plan, progress)
    best = max((rounds[name] for name in naive_names.values()), key=lambda measured: measured["cycles"].median)
    figures = [figure for variant in variants for figure in _figures(variant, rounds[variant.name], best)]
    for name in naive_names.values():
        subject = f"{name} (beside a window of {window_ms} ms)"
        figures += _figures(Variant(subject, Mode(), 0), rounds[name], {})
    return figures


def _turn(stage: _Stage, variant: Variant, gids: Iterator[str]) -> Measured:
    gid = next(gids)
    with open_sessions(stage.servers, gid, variant.mode) as pool:
        pool.start_over()
        _wait_until_stored(stage)
        before = _counts(stage, gid)
        began = time.perf_counter()
        _storm(pool, variant.messages)
        stage.workers.relay()
        known = max(pool.seen.known.values())
        measured = _measured(pool.seen, variant.messages, known - began)
        _wait_until_stored(stage)
        measured["stored"] = variant.messages / (time.perf_counter() - began)
        after = _counts(stage, gid)
        return {**measured, **{key: (after[key] - before[key]) / variant.messages for key in after}}


def _wait_until_stored(stage: _Stage) -> None:
    stage.workers.wait(lambda: not backlog(stage.chat, "persist", "receipts"), "everything is stored")


def _storm(pool: SessionPool, messages: int) -> None:
    """Send the messages, and poll until the sender knows of the last one."""
    seqs: list[int] = []
    while len(seqs) < messages:
        seqs += pool.send_when_free(messages - len(seqs))
        pool.poll()
    pool.poll_until_in(seqs, pool.seen.known)


def _measured(seen: SessionCounts, messages: int, cycles_s: float) -> dict[str, float]:
    windows = max(1.0, (max(seen.known.values()) - min(seen.sent.values())) * 1000 / WINDOW_MS)
    return {
        "cycles": messages / cycles_s,
        **_legs(
            [(seen.arrived[seq] - at) * 1000 for seq, at in seen.sent.items()],
            [(seen.known[seq] - seen.arrived[seq]) * 1000 for seq in seen.sent],
        ),
        "pushes": seen.pushes / messages,
        "digests": seen.digests / messages,
        "digests_per_window": seen.digests / windows,
    }


def _legs(delivery_ms: list[float], receipt_ms: list[float]) -> Measured:
    return {
        "delivery_p50": median(delivery_ms),
        "delivery_p99": percentile(delivery_ms, 0.99),
        "receipt_p50": median(receipt_ms),
        "receipt_p99": percentile(receipt_ms, 0.99),
    }


def _counts(stage: _Stage, gid: str) -> dict[str, float]:
    chat, servers = stage.chat, stage.servers
    commands = counters.commands(chat)
    calls, acks = counters.acks(chat, gid)
    rows = counters.rows(chat, gid)
    return {
        "commands": sum(commands.values()),
        "calls": commands.get("fcall", 0) + commands.get("fcall_ro", 0),
        "publishes": commands.get("spublish", 0),
        "ack_calls": calls,
        "acks": acks,
        "rows_messages": rows["group_msgs"],
        "rows_moves": rows["offset_moves"],
        "rows_receipts": rows["msg_acks"],
        "bytes_sql": servers.maker.bytes_of(servers.settings.database_url),
        "bytes_group": counters.bytes_of_group(chat, gid),
        "bytes_journal": counters.bytes_of_journal(chat, gid),
    }


def _naive_turn(naive: NaiveDesign, connections: int, messages: int) -> Measured:
    before = naive.counts()
    run = play(naive, connections, messages)
    after = naive.counts()
    return {
        "cycles": messages / run.seconds,
        "stored": messages / run.seconds,
        **_legs(run.delivery_ms, run.receipt_ms),
        "pushes": run.pushes / messages,
        "digests": run.receipts / messages,
        **{key: (after[key] - before[key]) / messages for key in after},
    }


_SPEED, _COUNTED = "speed", "counted, per message"

_MEASURES = {
    "cycles": (_SPEED, "cycles", "1/s"),
    "stored": (_SPEED, "cycles, in SQL too", "1/s"),
    "delivery_p50": (_SPEED, "send to last of 40, p50", "ms"),
    "delivery_p99": (_SPEED, "send to last of 40, p99", "ms"),
    "receipt_p50": (_SPEED, "from there to 40/199, p50", "ms"),
    "receipt_p99": (_SPEED, "from there to 40/199, p99", "ms"),
    "pushes": (_COUNTED, "received", ""),
    "publishes": (_COUNTED, "publishes", ""),
    "acks": (_COUNTED, "acks", ""),
    "ack_calls": (_COUNTED, "calls for them", ""),
    "digests": (_COUNTED, "receipt frames", ""),
    "digests_per_window": (_COUNTED, f"receipt frames in {WINDOW_MS} ms", ""),
    "commands": (_COUNTED, "Redis commands", ""),
    "calls": (_COUNTED, "function calls", ""),
    "rows_messages": (_COUNTED, "SQL rows: message", ""),
    "rows_receipts": (_COUNTED, "SQL rows: receipts", ""),
    "rows_moves": (_COUNTED, "SQL rows: offset moves", ""),
    "bytes_sql": (_COUNTED, "SQL bytes", "B"),
    "bytes_group": (_COUNTED, "Redis bytes", "B"),
    "bytes_journal": (_COUNTED, "journal bytes until trimmed", "B"),
}
"""By its key the table of a measure, its name there, and its unit."""

_FOLDED_AIMS = {"digests_per_window": Aim("<=", 1, of_ratio=False), "rows_messages": Aim("<=", 1, of_ratio=False)}


def _figures(variant: Variant, rounds: Mapping[str, Rounds], naive: Mapping[str, Rounds]) -> Iterator[Figure]:
    aims = {**(_FOLDED_AIMS if variant.folds else {}), "cycles": variant.aim}
    for key, (table, what, unit) in _MEASURES.items():
        if key in rounds:
            yield Figure(
                bench="storm",
                subject=variant.name,
                what=what,
                unit=unit,
                table=table,
                charted=key == "cycles",
                rounds=rounds[key],
                yardstick=Yardstick(_NAIVE, naive[key]) if key in naive else None,
                aim=aims.get(key),
            )
