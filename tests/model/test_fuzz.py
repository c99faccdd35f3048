"""Everything public with random text, ids and orders: only ImErrors, never another error, never a change on error.

As with the random histories, the calls are the same on every run. `IM_FUZZ_EXAMPLES=5000 pytest -k fuzz tests/model`
plays that many others, by chance, and prints how to repeat one that fails.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fakeredis
from hypothesis.stateful import run_state_machine_as_test

from imcore import Chat
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient, open_client
from imcore.streams.rounds import Client
from imcore.system import System
from tests.model.entries import ELSEWHERE, entries
from tests.model.examples import fuzzed
from tests.model.fuzzing import Fuzzing

PARTITIONS = 2


def fuzzing(client: Client, folder: Path) -> Fuzzing:
    settings = replace(Settings.from_env({}), partitions=PARTITIONS, online_ms=10**9, data_dir=folder)

    def open_chat() -> Chat:
        database = Database.connect(f"sqlite:///{folder / 'imcore.db'}")
        return Chat(System(RedisClient(client, partitions=PARTITIONS), database, settings))

    return Fuzzing(open_chat, folder)


def test_every_public_function_is_known_and_every_parameter_has_a_strategy() -> None:
    titles = {entry.title for entry in entries()}

    assert {"Chat.send", "Gateway.poll", "Device.queue", "LocalDatabase.log", "dead_letters.drop"} <= titles
    assert not titles & ELSEWHERE.keys()
    assert all(entry.strategy(parameter).validate() is None for entry in entries() for parameter in entry.parameters)


def test_random_calls_on_fakeredis(new_folder: Callable[[], Path]) -> None:
    def machine() -> Fuzzing:
        fuzzed_chat = fuzzing(fakeredis.FakeRedis(server=fakeredis.FakeServer()), new_folder())
        fuzzed_chat.without = frozenset({"Chat.erase_user"})  # fakeredis has no XSETID, without which none is erased
        return fuzzed_chat

    run_state_machine_as_test(machine, settings=fuzzed(15))


def test_random_calls_on_valkey(valkey: str, new_folder: Callable[[], Path]) -> None:
    def machine() -> Fuzzing:
        client = open_client(valkey)
        client.flushall()
        return fuzzing(client, new_folder())

    run_state_machine_as_test(machine, settings=fuzzed(30))
