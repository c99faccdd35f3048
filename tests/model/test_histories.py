"""Random histories against the brute-force model, on fakeredis and on the real server.

The histories are the same on every run (`derandomize`), so that a red run is the fault of the change that it stands by,
and can be repeated. `IM_MODEL_EXAMPLES=2000 pytest tests/model` plays that many others, by chance, and prints how to
repeat one that fails.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import fakeredis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from imcore import Chat
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import Client, RedisClient, open_client
from imcore.system import System
from tests.model.histories import Histories
from tests.model.stored import RebuiltHistories, StoredHistories

WANTED = os.environ.get("IM_MODEL_EXAMPLES")
"""Read here, because the tests themselves see no setting."""

PARTITIONS = 2
"""Few, so that groups meet in one."""


def played(examples: int) -> hypothesis_settings:
    """The settings of a run: so many histories, unless somebody wants another number.

    At home a history that fails is made as short as can be, which may take five minutes.
    """
    return hypothesis_settings(
        phases=[Phase.generate] if os.environ.get("CI") else [Phase.generate, Phase.shrink],
        max_examples=int(WANTED or examples),
        stateful_step_count=40,
        derandomize=WANTED is None,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def chat_on(client: Client, database: Database | None = None) -> Chat:
    settings = replace(Settings.from_env({}), partitions=PARTITIONS)
    return Chat(System(RedisClient(client, partitions=PARTITIONS), database, settings))


@pytest.fixture
def new_database(tmp_path: Path) -> Callable[[], Database]:
    """Makes an empty database, each time: a copy, because migrations take their time."""
    with Database.connect(f"sqlite:///{tmp_path / 'template.db'}") as template:
        template.upgrade()
    numbers = count()

    def new() -> Database:
        path = tmp_path / f"{next(numbers)}.db"
        shutil.copy(tmp_path / "template.db", path)
        return Database.connect(f"sqlite:///{path}")

    return new


def test_histories_on_fakeredis() -> None:
    def open_chat() -> Chat:
        return chat_on(fakeredis.FakeRedis(server=fakeredis.FakeServer()))

    run_state_machine_as_test(lambda: Histories(open_chat), settings=played(12))


def test_histories_on_valkey(valkey: str) -> None:
    def open_chat() -> Chat:
        client = open_client(valkey)
        client.flushall()
        return chat_on(client)

    run_state_machine_as_test(lambda: Histories(open_chat), settings=played(30))


def test_stored_histories_on_fakeredis(new_database: Callable[[], Database]) -> None:
    def open_chat() -> Chat:
        return chat_on(fakeredis.FakeRedis(server=fakeredis.FakeServer()), new_database())

    run_state_machine_as_test(lambda: StoredHistories(open_chat), settings=played(12))


def test_stored_histories_on_valkey(valkey: str, new_database: Callable[[], Database]) -> None:
    def open_chat() -> Chat:
        client = open_client(valkey)
        client.flushall()
        return chat_on(client, new_database())

    run_state_machine_as_test(lambda: RebuiltHistories(open_chat), settings=played(15))


def test_histories_on_a_cluster(cluster: str) -> None:
    def open_chat() -> Chat:
        client = open_client(cluster)
        client.flushall()
        return chat_on(client)

    run_state_machine_as_test(lambda: Histories(open_chat), settings=played(10))
