"""What is fixed when the data in Redis is created: the number of partitions, and the id of the data.

Every client needs them. On a cluster they are at one node, whose silence must stop nobody: so each partition has a
copy, and who asks takes the first ones that come.
"""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imcore.errors import ImError
from imcore.streams.calls import group_calls
from imcore.streams.keys import CONFIG, DEFAULT_PARTITIONS, REBUILDING, Keyspace
from imcore.streams.rounds import OTHERS_S

if TYPE_CHECKING:
    from imcore.streams.client import RedisClient

_FIELDS = ("partitions", "dataset", REBUILDING)
Configuration = tuple[int | None, str | None, str | None]
"""The number of partitions; the id of the data; the token of a rebuild that has begun and not ended."""
NOTHING: Configuration = (None, None, None)


def stored_partitions(client: "RedisClient") -> int | None:
    """Return the number of partitions of the data, None without data. Raise RedisUnavailable."""
    return _first(client, Keyspace(DEFAULT_PARTITIONS))[0]


def of_partition(client: "RedisClient", partition: int) -> Configuration:
    """Return the configuration as a partition has it. A copy that it lacks is made. Raise RedisUnavailable."""
    if not client.is_cluster:
        return _read(client.query_many([_command(CONFIG)])[0])
    key = client.space.config(partition)
    found = _read(client.query_many([_command(key)])[0])
    if None not in found[:2]:
        return found
    partitions, dataset, rebuilding = _first(client, client.space)
    if partitions is not None and dataset is not None:
        client.call(group_calls.copy_configuration(key, partitions, dataset))
    return partitions, dataset, rebuilding


def fix(client: "RedisClient", partitions: int) -> int:
    """Fix the number of partitions of new data; return the one that is stored. Raise RedisUnavailable."""
    stored, dataset = client.call(group_calls.init(partitions, uuid.uuid4().hex))
    write_copies(client, stored, dataset)
    return stored


def write_copies(client: "RedisClient", partitions: int, dataset: str) -> None:
    """Give each partition that answers its copy; a worker makes the others."""
    if client.is_cluster:
        space = Keyspace(partitions)
        copies = [
            group_calls.copy_configuration(space.config(partition), partitions, dataset)
            for partition in range(partitions)
        ]
        client.call_each(copies, others_s=OTHERS_S)


def _first(client: "RedisClient", space: Keyspace) -> Configuration:
    """Return the first whole configuration of those that answer, NOTHING if all say that there is none."""
    if not client.is_cluster:
        return _read(client.query_many([_command(CONFIG)], any_library=True)[0])
    own, *copies = client.query_each(
        [_command(CONFIG), *(_command(space.config(partition)) for partition in range(space.partitions))],
        any_library=True,
        others_s=OTHERS_S,
    )
    found = [_read(answer) for answer in (own, *copies) if not isinstance(answer, ImError)]
    whole = [each for each in found if None not in each[:2]]
    if not whole and isinstance(own, ImError):
        raise own
    return whole[0] if whole else found[0]


def _command(key: str) -> tuple[str, ...]:
    return ("HMGET", key, *_FIELDS)


def _read(answer: Sequence[Any]) -> Configuration:
    partitions, dataset, rebuilding = (None if value is None else value.decode() for value in answer)
    return None if partitions is None else int(partitions), dataset, rebuilding
