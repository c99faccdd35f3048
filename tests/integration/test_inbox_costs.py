"""An inbox of a thousand groups: few calls of bounded work, few commands a group, and SQL for many groups at once.

The time that they take is measured by `im bench inbox`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from imcore import Chat
from imcore import msgid as msgids
from imcore.model.values import Draft
from imcore.operations import inbox
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from tests.helpers.history_pages import Costs
from tests.helpers.servers import require_server, start_valkey
from tests.helpers.workers import store

GROUPS = 1000
MOST_COMMANDS = 5.0
"""For a group, those within functions included."""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    """Ann is in all groups: some are read, some are empty, and of some Redis has dropped all or the oldest messages."""
    require_server()
    folder: Path = tmp_path_factory.mktemp("inbox")
    server = start_valkey(folder / "server", appendonly=False)
    settings = replace(Settings.from_env({}, data_dir=str(folder)), redis_url=server.url, block_ms=10)
    try:
        with Chat.connect(settings=settings) as chat:
            chat.system.database.upgrade()
            for number in range(GROUPS):
                fill(chat, f"group {number}", number)
            store(chat)
            for number in range(1, GROUPS, 4):
                drop(chat, f"group {number}", keep=number % 3)
            yield chat
    finally:
        server.stop()


def fill(chat: Chat, gid: str, number: int) -> None:
    chat.create_group(gid, ["ann", "bob"])
    if number % 10 == 0:
        return
    sent = chat.send_many(gid, [Draft("ann" if n % 3 == 0 else "bob", "x" * 100) for n in range(20)])
    if number % 3:
        chat.ack("ann", gid, sent[number % 20].msgid)  # type: ignore[union-attr]


def drop(chat: Chat, gid: str, keep: int) -> None:
    tallies = chat.status(gid, limit=keep + 1)
    if tallies:
        packed = msgids.pack(tallies[0].message.msgid)
        chat.system.client.call(message_calls.trim(chat.system.client.space, gid, packed))


def test_calls_are_few_and_the_work_of_each_is_bounded(chat: Chat) -> None:
    with redis.Redis.from_url(chat.system.settings.redis_url) as server:
        chat.inbox("ann")  # the first one learns of users and functions
        server.config_resetstat()
        page = chat.inbox("ann")
        commands = {name: each["calls"] for name, each in server.info("commandstats").items()}
    assert (len(page.entries), page.groups) == (50, GROUPS)
    assert page.unread == sum(each.unread for each in chat.unread("ann"))
    assert GROUPS / inbox.GROUPS_PER_CALL + 50 / inbox.DETAILS_PER_CALL <= commands["cmdstat_fcall_ro"] <= 30
    assert sum(commands.values()) <= MOST_COMMANDS * GROUPS


def test_sql_is_asked_for_all_groups_at_once(chat: Chat) -> None:
    costs = Costs(chat)
    entries = []
    after = None
    while True:
        costs.clear()
        page = chat.inbox("ann", after=after, limit=100)
        entries += page.entries
        assert costs.sql <= 5  # seqs of all, seqs of the page, newest messages, first unread ones, and these again
        if (after := page.next) is None:
            break
    assert len(entries) == len({entry.gid for entry in entries}) == GROUPS
    newest = [msgids.pack(entry.message.msgid) if entry.message else 0 for entry in entries]
    assert newest == sorted(newest, reverse=True)
    assert sum(entry.unread for entry in entries) == page.unread
    for entry in entries[::37]:
        first = chat.history("ann", entry.gid, first_unread=True, limit=1).messages
        assert entry.first_unread_msgid == (first[0].msgid if entry.unread else None)
