"""The cost of jobs as the data grows. Each case prints its sizes.

Each case begins with an empty server and an empty database. Rounds repeat the job, not the filling; a rebuild empties
the server before each round.
"""

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from statistics import median

from imcore import msgid as msgids
from imcore.admin import retention
from imcore.chat import Chat
from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, interleave
from imcore.cli.bench.harness.nodes import drop_ours
from imcore.cli.bench.harness.servers import BenchServers, RunningServers
from imcore.cli.bench.harness.slow_log import slow_log
from imcore.cli.bench.harness.traffic import TEXT
from imcore.cli.bench.scenarios.memberships import memberships
from imcore.cli.progress import collected_rarely
from imcore.errors import ImError
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.streams.calls import creation_calls, message_calls
from imcore.streams.calls.message_calls import AckTarget
from imcore.streams.client import CHUNK
from imcore.util.batches import batches

_ABOVE_US = 100
_MEMBERS, _MESSAGES = 3, 5
"""Of each group that is checked."""
_TRIMMED_GROUPS, _TRIM_MEMBERS = 20, 200
_REBUILT_GROUPS = 10
_CALLS = 10
_USER_MESSAGES = 20
"""Of each group of a user in many groups."""

_Job = Callable[[], Measured]


def run_growth(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure the cases that the plan names, one after the other."""
    figures: list[Figure] = []
    for name in plan.cases or CASES:
        _empty(servers)
        own = servers.using(servers.tables())
        with CASES[name](own, plan, progress) as (sizes, job):
            measured = interleave({name: job}, plan, progress)[name]
        figures += [
            Figure(
                bench="growth",
                what=f"{name}, {sizes}: {what}",
                unit=_UNITS.get(what, "ms"),
                rounds=values,
                aim=_AIMS.get((name, what)),
            )
            for what, values in measured.items()
        ]
    return figures


_UNITS = {"a message": "us", "all of it": "s", "memory more": "MiB"}
_UNITS |= {"a membership": "B", "making a membership": "us", "a partition": "MiB"}
_UNITS |= dict.fromkeys(("fullest partition", "emptiest partition"), "x the mean")
_UNITS |= dict.fromkeys(("a message, cheapest partition", "a message, dearest partition"), "us")
_UNITS |= dict.fromkeys(("idle servers", "idle workers"), "ms/s")
_AIMS = {
    ("check", "a group"): Aim("<=", 0.3, of_ratio=False),
    ("create", "longest call"): Aim("<=", 10, of_ratio=False),
    ("mend", "longest call"): Aim("<=", 10, of_ratio=False),
    ("rebuild", "a message"): Aim("<=", 15, of_ratio=False),
    ("open", "a session"): Aim("<=", 10, of_ratio=False),
    ("unread", "a call"): Aim("<=", 15, of_ratio=False),
    ("trim", "all of it"): Aim("<=", 1, of_ratio=False),
    ("show", "all of it"): Aim("<=", 2, of_ratio=False),
}

_Case = Iterator[tuple[str, _Job]]
"""Yields the sizes in words, and what a round does."""


@contextmanager
def _check(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """Compare small groups, all of them sound."""
    groups = plan.size(5000, 1000, 50_000)
    progress(f"{groups:,} groups")
    with servers.running("persist") as running:
        _fill_small(running, servers.name, groups)
        running.wait_until_stored()

        def job() -> Measured:
            before = _peak_mib()
            with collected_rarely():
                seconds = _seconds(lambda: _expect_sound(running.chat))
            return {"a group": seconds / groups * 1000, "memory more": _peak_mib() - before}

        yield f"{groups:,} groups of {_MEMBERS} members and {_MESSAGES} messages", job


def _expect_sound(chat: Chat) -> None:
    if difference := next(check(chat.system), None):
        raise ImError(f"the data of the benchmark differs: {difference}")


@contextmanager
def _create(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """Make one large group, anew in each round."""
    members = plan.size(10_000, 10_000, 100_000)
    progress(f"a group of {members:,}")
    names = (f"{servers.name}-{number}" for number in count())
    with servers.chat() as chat, slow_log(chat, _ABOVE_US) as durations:

        def job() -> Measured:
            began = time.perf_counter()
            calls = durations(lambda: chat.create_group(next(names), _uids(members)))
            return {"longest call": max(calls), "all of it": time.perf_counter() - began}

        yield f"{members:,} members", job


@contextmanager
def _mend(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """Repair a group whose members have sent many messages and acked none; lists of own messages are lost."""
    messages = plan.size(10_000, 2000, 100_000)
    progress(f"a group of {messages:,} messages")
    gid, uids = f"{servers.name}-mended", _uids(_TRIM_MEMBERS)
    with servers.running("persist") as running, slow_log(running.chat, _ABOVE_US) as durations:
        chat = running.chat
        chat.create_group(gid, uids)
        for batch in batches(range(messages), CHUNK):
            chat.send_many(gid, [Draft(uids[number % len(uids)], TEXT) for number in batch])
        running.wait_until_stored()
        own = [chat.system.client.space.group(gid).own_unacked(uid) for uid in uids]

        def job() -> Measured:
            chat.system.client.execute_once("UNLINK", *own)
            began = time.perf_counter()
            calls = durations(lambda: deque(check(chat.system, repair=True), maxlen=0))
            return {"longest call": max(calls), "all of it": time.perf_counter() - began}

        yield f"{messages:,} messages of {len(uids)} members", job


@contextmanager
def _rebuild(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """Bring back what an empty server has lost."""
    messages = plan.size(100_000, 20_000, 1_000_000)
    progress(f"{messages:,} messages")
    with servers.running("persist") as running:
        _fill_large(running, servers.name, _REBUILT_GROUPS, _TRIM_MEMBERS, messages // _REBUILT_GROUPS)
        running.wait_until_stored()

    def job() -> Measured:
        _empty(servers)
        with servers.chat() as chat, collected_rarely():
            seconds = _seconds(lambda: rebuild(chat.system))
        return {"a message": seconds / messages * 1e6, "all of it": seconds}

    yield f"{messages:,} messages in {_REBUILT_GROUPS} groups of {_TRIM_MEMBERS}", job


@contextmanager
def _open(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """Begin a session of a user in many groups."""
    with _user_in_groups(servers, plan, progress) as (chat, uid, sizes), chat.gateway() as gateway:

        def job() -> Measured:
            times = []
            for _ in range(_CALLS):
                began = time.perf_counter()
                session = gateway.open(uid)
                times.append(time.perf_counter() - began)
                gateway.end(session)
            return {"a session": median(times) * 1000}

        yield sizes, job


@contextmanager
def _unread(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """Ask what a user in many groups has not read."""
    with _user_in_groups(servers, plan, progress) as (chat, uid, sizes):

        def job() -> Measured:
            return {"a call": median(_seconds(lambda: chat.unread(uid)) for _ in range(_CALLS)) * 1000}

        yield sizes, job


@contextmanager
def _trim(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """Drop old messages of some groups from Redis; new ones come before each round."""
    messages = plan.size(5000, 1000, 20_000)
    progress(f"{_TRIMMED_GROUPS} groups of {messages:,} messages")
    numbers = count()
    with servers.running("persist", "receipts") as running:

        def job() -> Measured:
            name = f"{servers.name}-{next(numbers)}"
            _fill_large(running, name, _TRIMMED_GROUPS, _TRIM_MEMBERS, messages)
            running.wait_until_stored()
            return {"all of it": _seconds(lambda: retention.trim(running.chat.system, keep_messages=0))}

        yield f"{_TRIMMED_GROUPS} groups of {messages:,} messages", job


@contextmanager
def _show(servers: BenchServers, plan: RoundPlan, progress: Progress) -> _Case:
    """List the members of a large group."""
    members = plan.size(100_000, 10_000, 100_000)
    progress(f"a group of {members:,}")
    gid, uids = f"{servers.name}-shown", _uids(members)
    with servers.chat() as chat:
        chat.create_group(gid, uids)
        chat.send_many(gid, [Draft(uids[0], TEXT)] * 100)
        yield f"{members:,} members", lambda: {"all of it": _seconds(lambda: deque(chat.members(gid), maxlen=0))}


# What the cases share.


@contextmanager
def _user_in_groups(servers: BenchServers, plan: RoundPlan, progress: Progress) -> Iterator[tuple[Chat, str, str]]:
    """Yield a chat, a user, and in words in how many groups that user is."""
    groups, uid = plan.size(1000, 200, 1000), f"{servers.name}-ann"
    progress(f"{groups:,} groups")
    with servers.running("persist") as running:
        for number in range(groups):
            gid = f"{servers.name}-of-ann-{number}"
            running.chat.create_group(gid, [uid, "bob"])
            running.chat.send_many(gid, [Draft("bob" if n % 3 else uid, TEXT) for n in range(_USER_MESSAGES)])
        running.wait_until_stored()
        yield running.chat, uid, f"{groups:,} groups of {_USER_MESSAGES} messages"


def _fill_small(running: RunningServers, name: str, groups: int) -> None:
    """Make small groups with messages: some members have read some of them."""
    client, uids = running.chat.system.client, _uids(1000)
    for numbers in batches(range(groups), CHUNK):
        members = {f"{name}-{n}": [uids[(n * 7 + m * 13) % len(uids)] for m in range(_MEMBERS)] for n in numbers}
        client.call_many([creation_calls.create(client.space, gid, own) for gid, own in members.items()])
        drafts = {gid: [Draft(own[n % 2], TEXT) for n in range(_MESSAGES)] for gid, own in members.items()}
        sent = client.call_many([message_calls.send(client.space, gid, own, 1) for gid, own in drafts.items()])
        targets = [
            AckTarget(msgids.pack(raised(results[2]).msgid), own[-1:])
            for own, results in zip(members.values(), sent, strict=True)
        ]
        client.call_many(
            [message_calls.ack(client.space, gid, [target]) for gid, target in zip(members, targets, strict=True)]
        )


def _fill_large(running: RunningServers, name: str, groups: int, members: int, messages: int) -> None:
    uids = _uids(members)
    for number in range(groups):
        gid = f"{name}-{number}"
        running.chat.create_group(gid, uids)
        for batch in batches(range(messages), CHUNK):
            running.chat.send_many(gid, [Draft(uids[n % members], TEXT) for n in batch])


def _empty(servers: BenchServers) -> None:
    """Drop all of ours from the server, which was empty when the benchmark began."""
    with servers.chat() as chat:
        drop_ours(chat.system.client.driver)


def _uids(count: int) -> list[str]:
    return [f"user-{number:08}" for number in range(count)]


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _peak_mib() -> float:
    """Return the highest memory that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


CASES: dict[str, Callable[[BenchServers, RoundPlan, Progress], AbstractContextManager[tuple[str, _Job]]]] = {
    "check": _check,
    "create": _create,
    "mend": _mend,
    "rebuild": _rebuild,
    "open": _open,
    "unread": _unread,
    "trim": _trim,
    "show": _show,
    "memberships": memberships,
}
