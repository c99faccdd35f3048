"""What is fixed when the data in Redis is created: the number of partitions, and the id of the data.

Every client needs the number. On a cluster one node has it, whose silence must stop nobody: so each partition has a
copy, and who asks takes what comes first.
"""

import uuid
from typing import TYPE_CHECKING

from imcore.errors import ImError
from imcore.streams.calls import group_calls
from imcore.streams.keys import CONFIG, DEFAULT_PARTITIONS, Keyspace
from imcore.streams.rounds import OTHERS_S

if TYPE_CHECKING:
    from imcore.streams.client import RedisClient


def stored_partitions(client: "RedisClient") -> int | None:
    """Return the number of partitions of the data, None without data.

    Raise RedisUnavailable, also if none of those that answer has it, and one is silent.
    """
    places = [CONFIG]
    if client.is_cluster:
        space = Keyspace(DEFAULT_PARTITIONS)
        places += [space.config(partition) for partition in range(space.partitions)]
    answers = client.query_each(
        [("HGET", place, "partitions") for place in places], any_library=True, others_s=OTHERS_S
    )
    if known := [answer for answer in answers if answer and not isinstance(answer, ImError)]:
        return int(known[0])
    if isinstance(answers[0], ImError):
        raise answers[0]
    return None


def fix(client: "RedisClient", partitions: int) -> int:
    """Fix the number of partitions of new data; return the one that is stored. Raise RedisUnavailable."""
    stored, dataset = client.call(group_calls.init(partitions, uuid.uuid4().hex))
    write_copies(client, stored, dataset)
    return stored


def write_copies(client: "RedisClient", partitions: int, dataset: str) -> None:
    """Give each partition of a cluster that answers its copy; the next worker that begins gives it to the others."""
    if client.is_cluster:
        space = Keyspace(partitions)
        copies = [
            group_calls.copy_configuration(space.config(partition), partitions, dataset)
            for partition in range(partitions)
        ]
        client.call_each(copies, others_s=OTHERS_S)
