"""Journals as the worker `persist` reads them, and entries that no function of ours has written."""

from dataclasses import replace
from typing import Any

from imcore.streams.client import RedisClient
from imcore.streams.journal import Journal
from imcore.workers.persist import KIND
from tests.helpers.persist_runs import SETTINGS


def journal(redis_client: RedisClient, **settings: Any) -> Journal:
    return Journal(redis_client, KIND, replace(SETTINGS, **settings))


def write(redis_client: RedisClient, partition: int = 0, **fields: str | bytes) -> str:
    """Put an entry into a journal; return its id."""
    client: Any = redis_client.driver
    entry_id: bytes = client.xadd(redis_client.space.journal(partition), fields)
    return entry_id.decode()
