"""What is fixed when the data in Redis is created, and every client needs: the number of partitions, the dataset.

On a cluster one node has it, whose silence must stop nobody: so each partition has a copy.
"""

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from imcore.errors import ImError, RedisUnavailable
from imcore.streams.answers import first_hand, raised
from imcore.streams.calls import group_calls
from imcore.streams.keys import CONFIG, DEFAULT_PARTITIONS, Keyspace
from imcore.streams.rounds import OTHERS_S

if TYPE_CHECKING:
    from imcore.streams.client import RedisClient


def stored_partitions(client: "RedisClient") -> int | None:
    """Return the number of partitions of the data, None without data.

    Raise RedisUnavailable, also if none of those that answer has it, and one is silent.
    """
    answers = _asked(client, "partitions")
    if known := [answer for answer in answers if answer and not isinstance(answer, ImError)]:
        return int(known[0])
    raised(answers[0])
    return None


def dataset(client: "RedisClient") -> str | None:
    """Return the name of the data in Redis, None without data. Raise RedisUnavailable if nobody who answers has it."""
    stored: bytes | None = first_hand(_asked(client, "dataset"))
    return None if stored is None else stored.decode()


def _asked(client: "RedisClient", field: str) -> list[Any]:
    where = Keyspace(DEFAULT_PARTITIONS).configurations() if client.is_cluster else [CONFIG]
    return client.query_each([("HGET", place, field) for place in where], any_library=True, others_s=OTHERS_S)


def fix(client: "RedisClient", partitions: int) -> int:
    """Fix the number of partitions of new data; return the one that is stored. Raise RedisUnavailable."""
    stored, name = client.call(group_calls.init(partitions, uuid.uuid4().hex))
    _write_copies(client, stored, name)
    return stored


def complete(client: "RedisClient") -> None:
    """Give each partition of a cluster its copy, if any has one that answers: others were silent, or have lost it."""
    with suppress(RedisUnavailable):
        if client.is_cluster and (partitions := stored_partitions(client)) and (name := dataset(client)):
            _write_copies(client, partitions, name)


def _write_copies(client: "RedisClient", partitions: int, name: str) -> None:
    """Give each partition that answers its copy; the next worker that begins gives it to the others."""
    if client.is_cluster:
        copies = Keyspace(partitions).configurations()[1:]
        client.call_each([group_calls.copy_init(place, partitions, name) for place in copies], others_s=OTHERS_S)
