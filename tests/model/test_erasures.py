"""Random histories in which users are erased, against a model in which they are renamed and leave."""

from collections.abc import Callable

from hypothesis.stateful import run_state_machine_as_test

from imcore import Chat
from imcore.sql.database import Database
from imcore.streams.client import open_client
from tests.model.erased import ErasedHistories
from tests.model.examples import played
from tests.model.test_histories import chat_on


def test_histories_with_erasures(valkey: str, new_database: Callable[[], Database]) -> None:
    def open_chat() -> Chat:
        client = open_client(valkey)
        client.flushall()
        return chat_on(client, new_database())

    run_state_machine_as_test(lambda: ErasedHistories(open_chat), settings=played(6))
