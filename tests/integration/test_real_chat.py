"""Real chat through the whole system: imported, stored, and equal to the brute-force model whatever is asked."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from imcore import Chat
from imcore.importer.importer import ImportSummary, import_events
from imcore.repair.check import check
from imcore.settings import Settings
from imcore.system import System
from tests.chat_data import ChatFile, chat_files
from tests.model.compare import compare_all, compare_read_times, compare_sql
from tests.model.reference import Model
from tests.model.replay import replay
from tests.persist_runs import new_persist

SOME = 20
"""Slow comparisons look at every 20th message only. `msg_acks` has the names of all."""


@pytest.fixture
def chat(valkey: str, database_url: str) -> Iterator[Chat]:
    with Chat.connect(valkey, database_url, settings=Settings.from_env({})) as chat:
        yield chat


@pytest.mark.parametrize("file", chat_files(), ids=str)
def test_import_of_real_chat_equals_the_model(chat: Chat, file: ChatFile) -> None:
    # When it is imported, before any worker has run
    summary = imported(chat, file)
    model = replayed(chat, file, Model())

    # Then every count and name is right in Redis alone
    assert summary.messages == sum(len(group.messages) for group in model.groups.values())
    live = Chat(System(chat.system.client, None, chat.system.settings))
    compare_all(live, model)

    # And, once it is stored, in SQL
    stored(chat)
    compare_sql(chat.system.database, model)
    for gid in model.groups:
        compare_read_times(chat, model, gid, every=SOME)
    assert list(check(chat.system)) == []

    # When the same file comes again, then it changes nothing
    assert imported(chat, file) == ImportSummary()
    stored(chat)
    compare_sql(chat.system.database, model)
    compare_all(live, model, every=SOME)
    assert list(check(chat.system)) == []


def imported(chat: Chat, file: ChatFile) -> ImportSummary:
    errors: list[tuple[int, str]] = []
    summary = import_events(chat, file.lines(), on_error=lambda number, reason: errors.append((number, reason)))
    assert errors == []
    return summary


def replayed(chat: Chat, file: ChatFile, model: Model) -> Model:
    """The model, after the same events."""
    msgids = {group.gid: [tally.message.msgid for tally in chat.status(group.gid, limit=0)] for group in chat.groups()}
    replay(model, file.events(), msgids)
    return model


def stored(chat: Chat) -> None:
    """Let the worker `persist` store all there is."""
    worker = new_persist(chat.system.client, chat.system.database, replace(chat.system.settings, block_ms=0))
    while worker.step():
        pass
    worker.close()
