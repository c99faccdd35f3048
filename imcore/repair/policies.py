"""Receipt policies of groups, and users' own choices: where Redis differs from what SQL has, and how that is mended.

A policy changes in Redis and in the journal at once. So Redis differs from SQL while a worker is about to store that,
which is no difference; and if Redis was lost, or somebody has changed one side by hand. Then SQL counts.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from imcore.errors import UserErasing
from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS
from imcore.repair.diff import Difference
from imcore.repair.window import gids_of, undone
from imcore.sql import queries
from imcore.streams import wire
from imcore.streams.calls import policy_calls
from imcore.streams.events import PolicySet, UserSet
from imcore.system import System
from imcore.util.batches import batches

AT_ONCE = 500


class Sides(NamedTuple):
    """A policy in Redis and in SQL: the receipts and the asked_by of a group, or the receipts of a user."""

    redis: tuple[str, ...]
    sql: tuple[str, ...]


Key = tuple[type, str, int]
"""A policy of a group, or a user's choice: the type of its event, the gid or uid, and the partition."""


def differences(system: System, partitions: Collection[int], *, repair: bool) -> Iterator[Difference]:
    """Yield the policies that differ in some partitions; with `repair` each is set in Redis as SQL has it.

    A difference counts that is there at two looks, and that no journal entry is about to end.
    """
    before = _look(system, partitions)
    now = _look(system, partitions) if before else {}
    for key in sorted((key for key in before if now.get(key) == before[key]), key=lambda key: (key[0].__name__, key)):
        yield _difference(key, before[key], repaired=repair and _mended(system, key, before[key]))


def restore(system: System, partitions: Collection[int]) -> int:
    """Set all policies of some partitions as SQL has them; return how many have changed."""
    return sum(1 for _ in differences(system, partitions, repair=True))


def _look(system: System, partitions: Collection[int]) -> Mapping[Key, Sides]:
    """Return what differs. Redis is read first, so what is stored meanwhile differs at this look only."""
    found = {**dict(_groups(system, partitions)), **dict(_users(system, partitions))}
    if not found:
        return {}
    waiting = set()
    for partition in range(system.client.space.partitions):
        for event in (entry.event for entry in undone(system.client, partition)):
            if isinstance(event, PolicySet | UserSet):
                waiting.add((type(event), event[0]))
    return {key: sides for key, sides in found.items() if key[:2] not in waiting}


def _groups(system: System, partitions: Collection[int]) -> Iterator[tuple[Key, Sides]]:
    space = system.client.space
    for gids in batches(gids_of(system, partitions), AT_ONCE):
        commands = [("HMGET", space.group(gid).meta, "seq", "receipts", "asked_by") for gid in gids]
        answers = dict(zip(gids, system.client.query_each(commands), strict=True))
        stored = queries.policies(system.database, gids)
        for gid, answer in answers.items():
            sql = stored.get(gid)
            # A group that Redis or SQL does not have, or that cannot be read, is a difference of its own.
            if isinstance(answer, list) and answer[0] is not None and sql:
                redis = _known(answer[1], GROUP_RECEIPTS), _known(answer[2], ASKED_BY)
                if redis != sql:
                    yield (PolicySet, gid, space.partition_of(gid)), Sides(redis, sql)


def _known(value: bytes | None, choices: tuple[str, ...]) -> str:
    """Return a value if it is one of the choices, else the first choice: the functions of Redis read it so."""
    text = wire.text(value or b"")
    return text if text in choices else choices[0]


def _users(system: System, partitions: Collection[int]) -> Iterator[tuple[Key, Sides]]:
    space = system.client.space
    answers = system.client.query_many([("SMEMBERS", space.receipts_off(partition)) for partition in partitions])
    stored = queries.users_without_receipts(system.database)
    for partition, answer in zip(partitions, answers, strict=True):
        for uid in set(map(wire.text, answer)) ^ stored:
            sql = "off" if uid in stored else "on"
            yield (UserSet, uid, partition), Sides(("on" if sql == "off" else "off",), (sql,))


def _mended(system: System, key: Key, sides: Sides) -> bool:
    kind, name, partition = key
    space = system.client.space
    if kind is PolicySet:
        receipts, asked_by = sides.sql
        system.client.call(policy_calls.set_policy(space, name, receipts, asked_by))
    else:
        is_off = sides.sql == ("off",)
        try:
            system.client.call(policy_calls.set_receipts(space, partition, name, is_off=is_off, is_journalled=False))
        except UserErasing:
            return False
    return True


def _difference(key: Key, sides: Sides, *, repaired: bool) -> Difference:
    kind, name, partition = key
    redis, sql = " asked by ".join(sides.redis), " asked by ".join(sides.sql)
    if kind is PolicySet:
        return Difference("receipt policy", redis, sql, gid=name, repaired=repaired)
    return Difference(f"receipts of {name!r} in partition {partition}", redis, sql, repaired=repaired)
