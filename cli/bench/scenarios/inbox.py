"""A page of the inbox of a user in 1,000 groups: how long it takes the server, and how long its longest call does.

The user is caught up in some groups, others are empty, and of others Redis has only the newest messages or none.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.harness import cpu
from imcore.cli.bench.harness.figures import Aim, Figure, Measured, Progress, RoundPlan, interleave
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.slow_log import slow_log
from imcore.cli.bench.harness.traffic import TEXT
from imcore.errors import ImError
from imcore.model.values import Draft, InboxPage
from imcore.operations.effects import raised
from imcore.streams.calls import message_calls

GROUPS = 1000
PAGE = 50
MESSAGES = 20
"""Of a group."""

_ABOVE_US = 100
"""The slow log leaves out commands that take less: logging each command within a call would make the call longer."""

_CALLS, _LONGEST, _CPU = "calls of a page", "longest call", "CPU of a page"
_AIMS = {_CALLS: Aim("<=", 20, of_ratio=False), _LONGEST: Aim("<=", 5, of_ratio=False)}


def run_inbox(servers: BenchServers, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Measure pages of the inbox. No worker runs meanwhile, so the server works for the inbox alone."""
    servers = servers.using(servers.tables())
    uid = f"{servers.name}-ann"
    progress(f"{GROUPS:,} groups")
    _fill(servers, uid)
    with servers.chat() as chat:
        first = chat.inbox(uid, limit=PAGE)
        if first.groups != GROUPS:
            raise ImError(f"the inbox has {first.groups} groups, not {GROUPS}")
        pages: dict[str, dict[str, Any]] = {
            "the first page": {},
            "the page after it": {"after": first.next},
            "groups with unread messages only": {"unread_only": True},
        }
        contestants: dict[str, Callable[[], Measured]] = {
            name: partial(_turn, chat, partial(chat.inbox, uid, limit=PAGE, **options), plan.size(15, 4))
            for name, options in pages.items()
        }
        rounds = interleave(contestants, plan, progress)
    return [
        Figure(
            bench="inbox",
            what=what,
            unit="ms",
            subject=name,
            table=f"a page of {PAGE} of {GROUPS:,} groups",
            rounds=values,
            aim=_AIMS.get(what),
        )
        for name, measured in rounds.items()
        for what, values in measured.items()
    ]


def _turn(chat: Chat, page: Callable[[], InboxPage], count: int) -> Measured:
    """Return the medians of some pages, and the CPU that the server has used for each of them."""
    with slow_log(chat, _ABOVE_US) as durations:
        calls = [durations(page) for _ in range(count)]
    clocks = cpu.clocks(chat, {})
    began = cpu.read(clocks)
    for _ in range(count):
        page()
    return {
        _CALLS: median(map(sum, calls)),
        _LONGEST: median(max(each, default=_ABOVE_US / 1000) for each in calls),
        _CPU: cpu.spent(began, cpu.read(clocks), count)[cpu.REDIS] / 1000,
    }


def _fill(servers: BenchServers, uid: str) -> None:
    """Make the groups, store them in SQL, and let Redis drop messages of every fourth."""
    gids = [f"{servers.name}-inbox-{number}" for number in range(GROUPS)]
    with servers.running("persist") as running:
        for number, gid in enumerate(gids):
            _fill_group(running.chat, gid, uid, number)
        running.wait_until_stored()
        for number in range(1, GROUPS, 4):
            _drop(running.chat, gids[number], keep=number % 3)


def _fill_group(chat: Chat, gid: str, uid: str, number: int) -> None:
    other = f"{uid}-other"
    chat.create_group(gid, [uid, other])
    if number % 10:
        sent = chat.send_many(gid, [Draft(other if n % 3 else uid, TEXT) for n in range(MESSAGES)])
        if number % 3:
            chat.ack(uid, gid, raised(sent[number % MESSAGES]).msgid)


def _drop(chat: Chat, gid: str, keep: int) -> None:
    if tallies := chat.status(gid, limit=keep + 1):
        client = chat.system.client
        client.call(message_calls.trim(client.space, gid, msgids.pack(tallies[0].message.msgid)))
