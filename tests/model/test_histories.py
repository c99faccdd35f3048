"""Random histories against the brute-force model, on fakeredis and on the real server.

The histories are the same on every run (`derandomize`), so that a red run is the fault of the change that it stands by,
and can be repeated. `IM_MODEL_EXAMPLES=2000 pytest tests/model` plays that many others, by chance, and prints how to
repeat one that fails.
"""

from collections.abc import Callable
from dataclasses import replace

import fakeredis
from hypothesis.stateful import run_state_machine_as_test

from imcore import Chat
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient, open_client
from imcore.streams.rounds import Client
from imcore.system import System
from tests.model.examples import PARTITIONS, played
from tests.model.histories import Histories
from tests.model.stored import RebuiltHistories, StoredHistories


def chat_on(client: Client, database: Database | None = None) -> Chat:
    settings = replace(Settings.from_env({}), partitions=PARTITIONS)
    return Chat(System(RedisClient(client, partitions=PARTITIONS), database, settings))


def test_histories_on_fakeredis() -> None:
    def open_chat() -> Chat:
        return chat_on(fakeredis.FakeRedis(server=fakeredis.FakeServer()))

    run_state_machine_as_test(lambda: Histories(open_chat), settings=played(12))


def test_histories_on_valkey(valkey: str) -> None:
    def open_chat() -> Chat:
        client = open_client(valkey)
        client.flushall()
        return chat_on(client)

    run_state_machine_as_test(lambda: Histories(open_chat), settings=played(20))


def test_stored_histories_on_fakeredis(new_database: Callable[[], Database]) -> None:
    def open_chat() -> Chat:
        return chat_on(fakeredis.FakeRedis(server=fakeredis.FakeServer()), new_database())

    run_state_machine_as_test(lambda: StoredHistories(open_chat), settings=played(8))


def test_stored_histories_on_valkey(valkey: str, new_database: Callable[[], Database]) -> None:
    def open_chat() -> Chat:
        client = open_client(valkey)
        client.flushall()
        return chat_on(client, new_database())

    run_state_machine_as_test(lambda: RebuiltHistories(open_chat), settings=played(10))


def test_histories_on_a_cluster(cluster: str) -> None:
    def open_chat() -> Chat:
        client = open_client(cluster)
        client.flushall()
        return chat_on(client)

    run_state_machine_as_test(lambda: Histories(open_chat), settings=played(6))
