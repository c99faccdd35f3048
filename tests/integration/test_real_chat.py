"""Real chat through the whole system: imported, stored, and equal to the brute-force model whatever is asked."""

from dataclasses import replace

import pytest

from imcore import Chat
from imcore.importer.importer import ImportSummary, import_events
from imcore.repair.check import check
from imcore.settings import Settings
from imcore.system import System
from tests.helpers.chat_data import ChatFile, chat_files
from tests.helpers.workers import store
from tests.model.compare import compare_all, compare_read_times, compare_sql
from tests.model.reference import Model
from tests.model.replay import replay

SOME = 20
"""Slow comparisons look at every 20th message only. `msg_acks` has the names of all."""
PAGE = 40
"""Messages a page of history: pages of a few messages are what random histories are compared by."""


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url)


@pytest.mark.parametrize("file", chat_files(), ids=str)
def test_import_of_real_chat_equals_the_model(chat: Chat, file: ChatFile) -> None:
    # When it is imported, before any worker has run
    summary = imported(chat, file)
    model = replayed(chat, file, Model())

    # Then every count and name is right in Redis alone
    assert summary.messages == sum(len(group.messages) for group in model.groups.values())
    live = Chat(System(chat.system.client, None, chat.system.settings))
    asks_all = chat.system.settings.database_url.startswith("sqlite")  # Redis is the same whatever the database is
    compare_all(live, model, every=1 if asks_all else SOME, page=PAGE)

    # And, once it is stored, in SQL
    store(chat)
    compare_sql(chat.system.database, model)
    for gid in model.groups:
        compare_read_times(chat, model, gid, every=SOME)
    assert list(check(chat.system)) == []

    # When the same file comes again, then it changes nothing
    assert imported(chat, file) == ImportSummary()
    store(chat)
    compare_sql(chat.system.database, model)
    compare_all(live, model, every=SOME, page=PAGE)
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
