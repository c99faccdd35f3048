"""The storm: a group of 200, 40 online, all of whom confirm each message, beside the literal design.

A cycle: a message is sent, received by all 40, acked by all 40, and the sender knows 40/199. Receipts are pushed at
once (window 0), folded over the default window and pushed, or polled with heartbeats.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median

from imcore.chat import Chat
from imcore.cli.bench import counters
from imcore.cli.bench.figures import Aim, Figure, Yardstick
from imcore.cli.bench.naive_design import NaiveDesign, open_naive, play
from imcore.cli.bench.processes import Workers, backlog, running_workers
from imcore.cli.bench.sessions import Mode, SessionCounts, SessionPool, open_sessions
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.timing import Measured, Progress, RoundPlan, Rounds, interleave, percentile

WINDOW_MS = 200
CONNECTIONS = (1, 8)
_LITERAL = "the literal design"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to live through the storm, with how many messages it is measured."""

    name: str
    mode: Mode
    messages: int
    aim: Aim | None = None
    folds: bool = False
    """Whether its receipts are folded over a window, and then pushed."""


def run_storm(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure every variant, and the literal design in the same rounds."""
    figures: list[Figure] = []
    url = stack.tables()
    with open_naive(stack) as literal:
        for window_ms, variants in _variants(plan).items():
            windowed = stack.using(url, receipt_window_ms=window_ms)
            with running_workers(windowed, "persist", "receipts") as workers, windowed.chat() as chat:
                figures += _block(_Block(windowed, chat, workers, literal, variants), plan, progress)
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


@dataclass(frozen=True, slots=True)
class _Block:
    """What is measured with one window."""

    stack: Stack
    chat: Chat
    workers: Workers
    literal: NaiveDesign
    variants: list[Variant]


def _block(block: _Block, plan: RoundPlan, progress: Progress) -> list[Figure]:
    numbers = iter(range(10_000))
    contestants: dict[str, Callable[[], Measured]] = {
        variant.name: _turn(block, variant, numbers) for variant in block.variants
    }
    for connections in CONNECTIONS:
        contestants[_literal_name(connections)] = _literal_turn(block.literal, connections, plan)
    found = interleave(contestants, plan, progress)
    best = max(CONNECTIONS, key=lambda connections: found[_literal_name(connections)]["cycles"].median)
    literal = found[_literal_name(best)]
    figures = [figure for variant in block.variants for figure in _figures(variant, found[variant.name], literal)]
    for connections in CONNECTIONS:
        name = _literal_name(connections)
        subject = f"{name} (beside a window of {block.stack.settings.receipt_window_ms} ms)"
        figures += _figures(Variant(subject, Mode(), 0), found[name], {})
    return figures


def _turn(block: _Block, variant: Variant, numbers: Iterator[int]) -> Callable[[], Measured]:
    def turn() -> Measured:
        gid = f"{block.stack.name}-storm-{next(numbers)}"
        with open_sessions(block.stack, gid, variant.mode) as crowd:
            _settle(block, crowd)
            before = _counts(block.stack, block.chat, gid)
            began, cycles_s = _storm(crowd, variant, block.workers)
            measured = {"cycles": variant.messages / cycles_s, **_legs(crowd.seen), **_told(crowd.seen, variant)}
            block.workers.wait(lambda: not _waiting(block.chat), "everything is stored")
            measured["stored"] = variant.messages / (time.perf_counter() - began)
            after = _counts(block.stack, block.chat, gid)
            return {**measured, **{key: (after[key] - before[key]) / variant.messages for key in after}}

    return turn


def _settle(block: _Block, crowd: SessionPool) -> None:
    """Wait until the messages of the warm-up have gone all the way; begin counting anew."""
    crowd.poll_until_in(list(crowd.seen.sent), crowd.seen.known)
    block.workers.wait(lambda: not _waiting(block.chat), "the warm-up is stored")
    crowd.seen = SessionCounts()


def _storm(crowd: SessionPool, variant: Variant, workers: Workers) -> tuple[float, float]:
    """Let it happen; return when it began, and how long it took until the sender knew of the last message."""
    began = time.perf_counter()
    seqs: list[int] = []
    while len(seqs) < variant.messages:
        seqs += crowd.send_when_free(variant.messages - len(seqs))
        crowd.poll()
    crowd.poll_until_in(seqs, crowd.seen.known)
    workers.look_after()
    return began, max(crowd.seen.known.values()) - began


def _legs(seen: SessionCounts) -> Measured:
    delivery = [(seen.arrived[seq] - at) * 1000 for seq, at in seen.sent.items()]
    receipt = [(seen.known[seq] - seen.arrived[seq]) * 1000 for seq in seen.sent]
    return {
        "delivery_p50": median(delivery),
        "delivery_p99": percentile(delivery, 0.99),
        "receipt_p50": median(receipt),
        "receipt_p99": percentile(receipt, 0.99),
    }


def _told(seen: SessionCounts, variant: Variant) -> Measured:
    seconds = max(seen.known.values()) - min(seen.sent.values())
    windows = max(1.0, seconds * 1000 / WINDOW_MS)
    return {
        "pushes": seen.pushes / variant.messages,
        "digests": seen.digests / variant.messages,
        "digests_per_window": seen.digests / windows,
    }


def _waiting(chat: Chat) -> int:
    return backlog(chat, "persist") + backlog(chat, "receipts")


def _counts(stack: Stack, chat: Chat, gid: str) -> dict[str, float]:
    commands = counters.commands(chat)
    acked = counters.moves(chat, gid)
    rows = counters.rows(chat, gid)
    return {
        "commands": sum(commands.values()),
        "calls": sum(commands.get(name, 0) for name in ("fcall", "fcall_ro")),
        "publishes": commands.get("spublish", 0),
        "ack_calls": acked.calls,
        "acks": acked.acks,
        "rows_messages": rows["group_msgs"],
        "rows_moves": rows["offset_moves"],
        "rows_receipts": rows["msg_acks"],
        "bytes_sql": stack.place.bytes_of(stack.settings.database_url),
        "bytes_group": counters.bytes_of_group(chat, gid),
        "bytes_journal": counters.bytes_of_journal(chat, gid),
    }


SPEED, COUNTED = "speed", "counted, per message"

_MEASURES = {
    "cycles": (SPEED, "cycles", "1/s"),
    "stored": (SPEED, "cycles, in SQL too", "1/s"),
    "delivery_p50": (SPEED, "send to last of 40, p50", "ms"),
    "delivery_p99": (SPEED, "send to last of 40, p99", "ms"),
    "receipt_p50": (SPEED, "from there to 40/199, p50", "ms"),
    "receipt_p99": (SPEED, "from there to 40/199, p99", "ms"),
    "pushes": (COUNTED, "received", ""),
    "publishes": (COUNTED, "publishes", ""),
    "acks": (COUNTED, "acks", ""),
    "ack_calls": (COUNTED, "calls for them", ""),
    "digests": (COUNTED, "receipt frames", ""),
    "digests_per_window": (COUNTED, f"receipt frames in {WINDOW_MS} ms", ""),
    "commands": (COUNTED, "Redis commands", ""),
    "calls": (COUNTED, "function calls", ""),
    "rows_messages": (COUNTED, "SQL rows: message", ""),
    "rows_receipts": (COUNTED, "SQL rows: receipts", ""),
    "rows_moves": (COUNTED, "SQL rows: offset moves", ""),
    "bytes_sql": (COUNTED, "SQL bytes", "B"),
    "bytes_group": (COUNTED, "Redis bytes", "B"),
    "bytes_journal": (COUNTED, "journal bytes until trimmed", "B"),
}
"""What every turn counts: its key, the table it stands in, what it is called there, unit."""

_FOLDED_AIMS = {"digests_per_window": Aim("<=", 1, of_ratio=False), "rows_messages": Aim("<=", 1, of_ratio=False)}


def _figures(variant: Variant, found: Mapping[str, Rounds], literal: Mapping[str, Rounds]) -> Iterator[Figure]:
    for key, (table, what, unit) in _MEASURES.items():
        if key not in found:
            continue
        yield Figure(
            bench="storm",
            subject=variant.name,
            what=what,
            unit=unit,
            table=table,
            charted=key == "cycles",
            rounds=found[key],
            yardstick=Yardstick(_LITERAL, literal[key]) if key in literal else None,
            aim=variant.aim if key == "cycles" else _FOLDED_AIMS.get(key) if variant.folds else None,
        )


def _literal_name(connections: int) -> str:
    return f"{_LITERAL}, {connections} connection{'s' * (connections > 1)}"


def _literal_turn(literal: NaiveDesign, connections: int, plan: RoundPlan) -> Callable[[], Measured]:
    messages = plan.size(60, 10)

    def turn() -> Measured:
        before = literal.counts()
        played = play(literal, connections, messages)
        after = literal.counts()
        return {
            "cycles": messages / played.seconds,
            "stored": messages / played.seconds,
            "delivery_p50": median(played.delivery_ms),
            "delivery_p99": percentile(played.delivery_ms, 0.99),
            "receipt_p50": median(played.receipt_ms),
            "receipt_p99": percentile(played.receipt_ms, 0.99),
            "pushes": played.pushes / messages,
            "digests": played.receipts / messages,
            **{key: (after[key] - before[key]) / messages for key in after},
        }

    return turn
