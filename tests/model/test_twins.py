"""Nobody can tell what a user reads in private, or marks: twin worlds that differ in this alone."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from imcore import Chat
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient, open_client
from imcore.system import System
from tests.model.examples import HISTORIES_WANTED, PARTITIONS
from tests.model.twins import Twins

STEPS = 60


@pytest.mark.parametrize("seed", range(int(HISTORIES_WANTED or 2)))
def test_no_answer_to_anybody_else_differs(valkey: str, new_database: Callable[[], Database], seed: int) -> None:
    # Given two systems, each in a database of its own on the server
    servers = iter([valkey, f"{valkey}?db=1"])

    def open_chat() -> Chat:
        database = new_database()
        database.upgrade()
        settings = replace(Settings.from_env({}), partitions=PARTITIONS, block_ms=0, retry_ms=0, receipt_window_ms=0)
        return Chat(System(RedisClient(open_client(next(servers)), partitions=PARTITIONS), database, settings))

    # When a user does one thing in private in one of them, and another thing in the other
    with closing(Twins(open_chat, seed)) as twins:
        twins.play(STEPS)
        # Then everything that the others are answered and pushed was the same, but not what the user is answered
        assert twins.has_differed
