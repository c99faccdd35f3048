"""A day in fast motion: does Redis stay as large as it is while people talk, and is anything left behind?

24 hours of the real chat's rates, and the next morning, are played through gateways whose sessions come and go, with
the real workers, and `trim` after each part of an hour; times that are a day in life (retention, client_msgids) are
shortened so that they go round many times. SQL keeps what is said, and grows with it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

from imcore.admin.retention import trim
from imcore.chat import Chat
from imcore.cli.bench import counters, key_counts
from imcore.cli.bench.figures import Aim, Figure
from imcore.cli.bench.key_counts import UNKNOWN, KeyCounts
from imcore.cli.bench.processes import Workers, backlog, running_workers
from imcore.cli.bench.retained_bytes import weigh
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.steady_traffic import MESSAGES_OF_HOURS, SteadyTraffic, hours
from imcore.cli.bench.timing import Progress, RoundPlan, Rounds

FIRST_HOUR = 9
WORKERS = ("persist", "receipts")
HOURS = 28
SETTLED, LATER, MORNING = range(4, 12), range(12, 24), range(24, HOURS)
"""By the first of these hours every window has gone round, and the others must be like them; above all the next
morning, when there is as much talk as then."""

_GATEWAYS = 2
_ACK_S = 0.05
_LONGEST_S = 60
_PAUSE_S = 0.01
_MORE, _A_FEW = 1.2, 10
"""A kind of keys grows if there are a fifth more of it, and a few more."""

_FLAT = Aim("<=", 1.05, of_ratio=False)
_NONE = Aim("<=", 0, of_ratio=False)
_KIB = 1024


@dataclass(slots=True)
class Day:
    """What was found at the end of each part of each hour; once all have gone; and what an empty server takes."""

    found: list[list[KeyCounts]] = field(default_factory=list)
    sql_bytes: list[int] = field(default_factory=list)
    at_the_end: KeyCounts | None = None
    empty_bytes: int = 0

    def of_parts(self, value: Callable[[KeyCounts], float], hours_of: Sequence[int]) -> list[list[float]]:
        """Return a value in these hours, for each part of an hour."""
        return [list(map(value, part)) for part in zip(*(self.found[hour] for hour in hours_of), strict=True)]

    def growth(self, value: Callable[[KeyCounts], float], hours_of: Sequence[int]) -> Rounds:
        """Return the middle value of these hours over that of the settled ones, part by part."""
        settled, later = self.of_parts(value, SETTLED), self.of_parts(value, hours_of)
        return Rounds(tuple(median(then) / median(base) for base, then in zip(settled, later, strict=True)))

    def bytes_of(self, found: KeyCounts) -> int:
        """Return what is in Redis beyond what an empty server takes."""
        return found.bytes - self.empty_bytes


def run_steady(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Play a day and a morning, and look at everything after each part of an hour."""
    window_ms = plan.size(4000, 1000)
    stack = _shortened(stack.using(stack.tables(), receipt_window_ms=0), window_ms, keep=plan.size(200, 30))
    day = Day()
    with stack.chat() as chat:
        with running_workers(stack, *WORKERS) as workers:
            catch_up = partial(_catch_up, chat, workers)
            with ExitStack() as things:
                chats = [things.enter_context(stack.chat()) for _ in range(_GATEWAYS)]
                gateways = [things.enter_context(each.gateway(ack_interval_s=_ACK_S)) for each in chats]
                town = SteadyTraffic(stack.name, chat, gateways)
                for hour, parts in enumerate(hours(HOURS, plan.size(100, 15) / 100, plan.rounds)):
                    progress(f"{_name(hour)}, {sum(parts)} messages")
                    play_hour(town, day, parts, catch_up)
                    day.sql_bytes.append(stack.place.bytes_of(stack.settings.database_url))
            progress("what is kept for good")
            kept = list(weigh(chat, stack.name, lambda: _settle(chat, catch_up), plan.rounds))
        progress("all go home")
        end(day, chat, window_ms, stack.clear)
    return [*_curve(day), *_aims(day), *kept]


def _shortened(stack: Stack, window_ms: int, keep: int) -> Stack:
    settings = replace(
        stack.settings,
        idempotency_ms=window_ms,
        online_ms=window_ms,
        heartbeat_ms=window_ms // 4,
        keep_messages=keep,
    )
    return replace(stack, settings=settings)


def end(day: Day, chat: Chat, window_ms: int, clear: Callable[[], None]) -> None:
    """Look what is left once all have gone, and how large the server is that holds nothing."""
    time.sleep(2 * window_ms / 1000)  # by then a session that nobody has has expired
    day.at_the_end = key_counts.take(chat)
    clear()
    _wait_for_memory(chat)
    day.empty_bytes = counters.data_memory(chat)


def _wait_for_memory(chat: Chat) -> None:
    """Wait until what was unlinked is given back."""
    give_up = time.monotonic() + _LONGEST_S
    while chat.system.client.query("INFO", "memory")["lazyfree_pending_objects"] and time.monotonic() < give_up:
        time.sleep(_PAUSE_S)


def play_hour(town: SteadyTraffic, day: Day, parts: Sequence[int], catch_up: Callable[[], None]) -> None:
    """Let each part of an hour happen, and look when all is stored, told, confirmed and trimmed."""
    day.found.append([])
    town.join_and_leave()
    for messages in parts:
        town.go_on(messages)
        for _ in range(2):  # what is told is confirmed, and so there is something to store again
            town.settle()
            catch_up()
        trim(town.chat.system)
        day.found[-1].append(key_counts.take(town.chat))


def _settle(chat: Chat, catch_up: Callable[[], None]) -> None:
    catch_up()
    trim(chat.system, keep_messages=0)


def _catch_up(chat: Chat, workers: Workers) -> None:
    workers.wait(lambda: not any(backlog(chat, name) for name in WORKERS), "all is done", timeout_s=_LONGEST_S)


def key_bytes(found: KeyCounts) -> float:
    """Return what the keys take."""
    return found.key_bytes


def growing_kinds(day: Day) -> list[str]:
    """Return the kinds of keys of which there are more and more."""
    kinds = {kind for found in day.found[-1] for kind in found.keys}
    return sorted(kind for kind in kinds if _count(day, kind, MORNING) > _MORE * _count(day, kind, SETTLED) + _A_FEW)


def _count(day: Day, kind: str, hours_of: Sequence[int]) -> float:
    return median(found.keys.get(kind, 0) for hour in hours_of for found in day.found[hour])


def _name(hour: int) -> str:
    return f"{(FIRST_HOUR + hour) % 24:02} h" + ", next day" * (hour >= len(MESSAGES_OF_HOURS))


def _curve(day: Day) -> Iterator[Figure]:
    for hour, (parts, sql) in enumerate(zip(day.found, day.sql_bytes, strict=True)):
        subject = _name(hour)
        columns: dict[str, tuple[str, list[float]]] = {
            "Redis": ("KiB", [day.bytes_of(found) / _KIB for found in parts]),
            "keys by MEMORY USAGE": ("KiB", [found.key_bytes / _KIB for found in parts]),
            "SQL": ("KiB", [sql / _KIB] * len(parts)),
            "messages said": ("", [MESSAGES_OF_HOURS[hour % len(MESSAGES_OF_HOURS)]] * len(parts)),
            "messages kept": ("", [found.members["stream"] for found in parts]),
            "journal entries": ("", [found.members["journal"] for found in parts]),
            "keys": ("", [sum(found.keys.values()) for found in parts]),
            "sessions": ("", [sum(found.sessions.values()) for found in parts]),
            "receipts that wait": ("", [found.members["dirty"] for found in parts]),
            "closed spans": ("", [found.members["left"] for found in parts]),
            "recalls": ("", [found.members["recalled"] / 2 for found in parts]),
        }
        for what, (unit, values) in columns.items():
            yield Figure(
                bench="steady",
                subject=subject,
                what=what,
                unit=unit,
                table="a day, hour by hour",
                charted=what == "Redis",
                rounds=Rounds(tuple(values)),
            )


def _aims(day: Day) -> Iterator[Figure]:
    last, end = day.found[-1], day.at_the_end
    for name, hours_of in (("hours 13 to 24", LATER), ("the next morning", MORNING)):
        for what, value in (("Redis memory", day.bytes_of), ("keys", key_bytes)):
            yield _figure(f"{what}: {name} over hours 5 to 12", "x", day.growth(value, hours_of), _FLAT)
    counted: dict[str, list[float]] = {
        "journal entries left once all is done": [found.members["journal"] for found in last],
        "keys of no known kind": [found.keys.get(UNKNOWN, 0) for found in last],
        "kinds of keys that go on growing": [len(growing_kinds(day))] * len(last),
        "consumers that are no running worker": [
            found.foreign_consumers + sum(found.consumers.values()) - len(WORKERS) for found in last
        ],
        "sessions and leases left once all have gone": [
            sum(end.keys.get(kind, 0) for kind in ("sessions", "lease")) if end else 0
        ]
        * len(last),
    }
    for what, values in counted.items():
        yield _figure(what, "", Rounds(tuple(values)), _NONE)


def _figure(what: str, unit: str, rounds: Rounds, aim: Aim) -> Figure:
    return Figure(bench="steady", what=what, unit=unit, rounds=rounds, aim=aim)
