"""Steps of the worker `persist` in this process."""

from dataclasses import replace
from typing import Any

from imcore import Chat
from imcore import msgid as msgids
from imcore.repair.watch import Watch
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.workers.persist import Persist

UIDS = ["ann", "bob"]
SETTINGS = replace(Settings.from_env({}, data_dir="/nowhere"), block_ms=0, retry_ms=0, max_deliveries=3)


def new_persist(client: RedisClient, database: Database, settings: Settings) -> Persist:
    """The worker as its process makes it."""
    return Persist(client, database, settings, Watch(client, database, settings))


def raw(chat: Chat) -> Any:
    """The driver's client: its types leave open what it answers."""
    return chat.system.client.driver


def packed(*texts: str | None) -> list[int]:
    return [msgids.pack(text) if text else 0 for text in texts]


def tell_again(chat: Chat) -> None:
    """Put the last entry of kind msg into the journal once more."""
    journal = chat.system.client.space.group("g").journal
    fields = next(f for _, f in raw(chat).xrevrange(journal) if f[b"kind"] == b"msg")
    raw(chat).xadd(journal, fields)
