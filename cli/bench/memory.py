"""Bytes: in Redis per message, member and idle group, in SQL per message and per ack, beside the literal design.

Redis is asked for the memory it has allocated, before and after; MEMORY USAGE would estimate consumer groups wrongly.
The journals are emptied before each look, as `trim` empties them once the workers are done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench import counters
from imcore.cli.bench.figures import Aim, Figure, Yardstick
from imcore.cli.bench.fixture import chunks
from imcore.cli.bench.naive_sql import open_store
from imcore.cli.bench.processes import Workers, backlog, running_workers
from imcore.cli.bench.stack import Stack
from imcore.cli.bench.timing import Progress, RoundPlan, Rounds
from imcore.errors import ImError
from imcore.model.values import Draft
from imcore.streams.calls import group_calls, message_calls
from imcore.streams.calls.message_calls import AckTarget

SMALL = 200
ACKS_PER_MESSAGE = 10
TEXT = "x" * 100
_AT_ONCE = 500
_LONGEST_S = 120

_MEMBER_AIM = Aim("<=", 450, of_ratio=False)
_MESSAGE_AIM = Aim("<=", 150, of_ratio=False)
_ROW_AIM = Aim("<=", 250, of_ratio=False)


@dataclass(slots=True)
class _Found:
    """What was weighed so far: rounds by name of the figure."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        """Add what a round found."""
        self.values.setdefault(name, []).append(value)

    def figure(self, name: str, aim: Aim | None = None, beside: str = "") -> Figure:
        """Return a figure; `beside` names the one that is its yardstick."""
        yardstick = Yardstick("the literal design", Rounds(tuple(self.values[beside]))) if beside else None
        rounds = Rounds(tuple(self.values[name]))
        return Figure(bench="memory", what=name, unit="B", rounds=rounds, yardstick=yardstick, aim=aim, charted=True)


def run_memory(stack: Stack, plan: RoundPlan, progress: Progress) -> list[Figure]:
    """Weigh everything, anew in each round."""
    stack = stack.using(stack.tables())
    sizes = (SMALL, plan.size(100_000, 10_000))
    found = _Found()
    with running_workers(stack, "persist") as workers, stack.chat() as chat:
        for number in range(1, plan.rounds + 1):
            scales = _Scales(stack, chat, workers, f"{stack.name}-{number}", found)
            progress(f"idle groups, round {number} of {plan.rounds}")
            scales.weigh_idle_groups(plan.size(1000, 200))
            for size in sizes:
                progress(f"groups of {size:,}, round {number} of {plan.rounds}")
                scales.weigh_group(size, plan.size(10_000, 2000))
            progress(f"the literal design, round {number} of {plan.rounds}")
            _literal(stack, plan.size(1000, 200), found)
    return _figures(found, sizes)


@dataclass(frozen=True, slots=True)
class _Scales:
    """What one round weighs, and with what."""

    stack: Stack
    chat: Chat
    workers: Workers
    name: str
    found: _Found

    def weigh_idle_groups(self, count: int) -> None:
        """Make groups of two, and nothing else."""
        space = self.chat.system.client.space
        batch = [
            group_calls.create_group(space, f"{self.name}-idle-{number}", ["ann", "bob"]) for number in range(count)
        ]
        self.found.note(
            "Redis, per idle group of two", self._growth(lambda: self.chat.system.client.call_many(batch)) / count
        )

    def weigh_group(self, size: int, messages: int) -> None:
        """Make groups of a size, with messages and acks in one of them."""
        uids = [f"user-{number:08}" for number in range(size)]  # as long as user ids usually are
        gids = [f"{self.name}-of-{size}-{number}" for number in range(max(1, 10 * SMALL // size))]
        members, text = f"{size:,} members", len(TEXT)
        grown = self._growth(lambda: self._make(gids, uids))
        self.found.note(f"Redis, per member, {members}", grown / size / len(gids))
        before = self._rows_bytes("group_msgs")
        grown = self._growth(lambda: self._send(gids[0], uids[0], messages))
        self.found.note(f"Redis, per message of 100 bytes, beyond its text, {members}", grown / messages - text)
        grown = self._rows_bytes("group_msgs") - before
        self.found.note(f"SQL, per message of 100 bytes, beyond its text, {members}", grown / messages - text)
        before = self._rows_bytes("offset_moves")
        self._growth(lambda: _ack(self.chat, gids[0], uids[1 : ACKS_PER_MESSAGE + 1]))
        grown = self._rows_bytes("offset_moves") - before
        self.found.note(f"SQL, per ack that moved an offset, {members}", grown / messages / ACKS_PER_MESSAGE)

    def _make(self, gids: Sequence[str], uids: Sequence[str]) -> None:
        for gid in gids:
            self.chat.create_group(gid, uids)

    def _send(self, gid: str, sender: str, messages: int) -> None:
        call = message_calls.send(self.chat.system.client.space, gid, [Draft(sender, TEXT)], 1)
        self.chat.system.client.call_many([call] * messages, repeatable=False)

    def _growth(self, action: Callable[[], object]) -> int:
        """Return how many bytes Redis holds more after an action, once it is stored and the journals are empty."""
        self._settle()
        before = counters.data_memory(self.chat)
        action()
        self._settle()
        return counters.data_memory(self.chat) - before

    def _settle(self) -> None:
        self.workers.wait(lambda: not backlog(self.chat, "persist"), "everything is stored", timeout_s=_LONGEST_S)
        for journal in self.chat.system.client.space.journals():
            self.chat.system.client.execute_once("XTRIM", journal, "MAXLEN", 0)

    def _rows_bytes(self, table: str) -> int:
        return self.stack.place.bytes_of(self.stack.settings.database_url, table)


def _ack(chat: Chat, gid: str, uids: Sequence[str]) -> None:
    """Ack each message by each of these members."""
    space = chat.system.client.space
    entries = [entry for entry, _ in _entries(chat, gid)]
    acks = [
        AckTarget(msgids.pack_id(entry), some, seq)
        for seq, entry in enumerate(entries, 1)
        for some in chunks(uids, _AT_ONCE)
    ]
    for answer in chat.system.client.call_many([message_calls.ack(space, gid, [each]) for each in acks]):
        for one in answer:
            if isinstance(one.target, ImError):
                raise one.target


def _entries(chat: Chat, gid: str) -> list[tuple[bytes, object]]:
    found: list[tuple[bytes, object]] = chat.system.client.query(
        "XRANGE", chat.system.client.space.group(gid).stream, "-", "+"
    )
    return found


def _literal(stack: Stack, messages: int, found: _Found) -> None:
    """Weigh the literal design in a group of 200, each message acked by some."""
    url = stack.place.new()
    uids = [f"user-{number:08}" for number in range(SMALL)]
    store = open_store(url, f"{stack.name}-literal")
    try:
        store.create(uids)
        before = stack.place.bytes_of(url)
        sent = [store.send(uids[0], TEXT) for _ in range(messages)]
        after = stack.place.bytes_of(url)
        for uid in uids[1 : ACKS_PER_MESSAGE + 1]:
            for msgid in sent:
                store.ack(uid, msgid)
        found.note("literal message", (after - before) / messages - len(TEXT))
        found.note("literal ack", (stack.place.bytes_of(url) - after) / messages / ACKS_PER_MESSAGE)
    finally:
        store.close()


def _figures(found: _Found, sizes: Sequence[int]) -> list[Figure]:
    figures = [found.figure("Redis, per idle group of two")]
    for size in sizes:
        members = f"{size:,} members"
        beside_message, beside_ack = ("literal message", "literal ack") if size == SMALL else ("", "")
        figures += [
            found.figure(f"Redis, per member, {members}", _MEMBER_AIM),
            found.figure(f"Redis, per message of 100 bytes, beyond its text, {members}", _MESSAGE_AIM),
            found.figure(f"SQL, per message of 100 bytes, beyond its text, {members}", _ROW_AIM, beside_message),
            found.figure(f"SQL, per ack that moved an offset, {members}", None, beside_ack),
        ]
    return figures
