"""The cost of many memberships: bytes and CPU of the servers by partition, idle groups included.

Compare one run with another of a tenth of its size: what differs does not grow linearly. No worker stores the groups,
whose journals are emptied: SQL has its own figures.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.cli.bench.harness import cpu
from imcore.cli.bench.harness.figures import Measured, Progress, RoundPlan
from imcore.cli.bench.harness.nodes import total
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.traffic import TEXT, data_memory
from imcore.model.values import Draft
from imcore.operations.effects import raised
from imcore.streams.calls import creation_calls, message_calls
from imcore.streams.calls.message_calls import AckTarget
from imcore.util.batches import batches, grouped

MEMBERS = 100
"""Of each group."""
GROUPS_OF_A_USER = 10
ACKS = 10
"""Of each message, in one call as a gateway sends them."""

_AT_ONCE = 50
"""The groups that are made in one round trip."""
_IDLE_S = 10


@contextmanager
def memberships(
    servers: BenchServers, plan: RoundPlan, progress: Progress
) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """Make idle groups, and let messages be sent in a few of them, one partition after the other."""
    groups, messages = plan.size(2000, 500, 100_000), plan.size(4000, 800)
    with servers.chat() as chat:
        gids, users = [f"{servers.name}-{number}" for number in range(groups)], groups * MEMBERS // GROUPS_OF_A_USER
        space = chat.system.client.space
        by_partition = grouped((space.partition_of(gid), (gid, number)) for number, gid in enumerate(gids))
        before, began = data_memory(chat), _redis_us(chat)
        progress(f"{groups * MEMBERS:,} memberships")
        _make(chat, gids, users)
        all_bytes = data_memory(chat) - before
        making_us = _redis_us(chat) - began

        def job() -> Measured:
            costs = [_traffic(chat, each, users, messages // len(space.journals())) for each in by_partition.values()]
            shares = [len(each) * len(by_partition) / groups for each in by_partition.values()]
            return {
                "a membership": all_bytes / groups / MEMBERS,
                "making a membership": making_us / groups / MEMBERS,
                "a partition": all_bytes / len(by_partition) / (1 << 20),
                "fullest partition": max(shares),
                "emptiest partition": min(shares),
                "a message, cheapest partition": min(costs),
                "a message, dearest partition": max(costs),
                **_idle(servers),
            }

        yield f"{groups * MEMBERS:,} in {groups:,} groups", job


def _make(chat: Chat, gids: Sequence[str], users: int) -> None:
    """Make groups, each user in GROUPS_OF_A_USER of them, and empty the journals."""
    client = chat.system.client
    for numbers in batches(range(len(gids)), _AT_ONCE):
        calls = [creation_calls.create(client.space, gids[n], _uids_of(n, users)) for n in numbers]
        client.call_many(calls)
        _empty_journals(chat)


def _uids_of(group: int, users: int) -> list[str]:
    """Return the members of a group: users by chance, always the same ones."""
    return [f"user-{user:08}" for user in Random(group).sample(range(users), MEMBERS)]  # noqa: S311 (no secret)


def _traffic(chat: Chat, groups: Sequence[tuple[str, int]], users: int, messages: int) -> float:
    """Send messages in groups of one partition, each with some acks; return the CPU of the servers for one, in us."""
    client, began = chat.system.client, _redis_us(chat)
    some = [groups[number * len(groups) // messages] for number in range(messages)]
    for batch in batches(some, _AT_ONCE):
        members = [_uids_of(number, users) for _, number in batch]
        calls = [
            message_calls.send(client.space, gid, [Draft(uids[0], TEXT)], 1)
            for (gid, _), uids in zip(batch, members, strict=True)
        ]
        sent = [raised(answer[0]) for answer in client.call_many(calls, repeatable=False)]
        acks = [
            message_calls.ack(client.space, gid, [AckTarget(msgids.pack(each.msgid), uids[1 : ACKS + 1], each.seq)])
            for (gid, _), uids, each in zip(batch, members, sent, strict=True)
        ]
        client.call_many(acks)
    spent = _redis_us(chat) - began
    _empty_journals(chat)
    return spent / messages


def _idle(servers: BenchServers) -> Measured:
    """Return the CPU of the servers, and of two workers, while nobody does anything, in ms a second."""
    with servers.running("persist", "receipts") as running:
        clocks = running.clocks()
        began, before = time.perf_counter(), cpu.read(clocks)
        time.sleep(_IDLE_S)
        seconds, after = time.perf_counter() - began, cpu.read(clocks)
    spent = {name: (after[name] - before[name]) / seconds * 1000 for name in before}
    return {"idle servers": spent[cpu.REDIS], "idle workers": sum(spent[name] for name in running.names)}


def _empty_journals(chat: Chat) -> None:
    for journal in chat.system.client.space.journals():
        chat.system.client.execute_once("XTRIM", journal, "MAXLEN", 0)


def _redis_us(chat: Chat) -> float:
    return total(chat, "cpu", "used_cpu_user", "used_cpu_sys") * 1e6
