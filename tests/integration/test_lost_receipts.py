"""Receipts that no sender has confirmed come again, wherever a process is killed that repairs a Redis without them."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat
from imcore.errors import ImError
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from tests.helpers.dying import Dying, KilledError, bury_the_dead
from tests.helpers.persist_runs import new_persist
from tests.helpers.workers import persist, run_workers

GIDS = ("team", "群主")
PARTITIONS = 2
STEP = int(os.environ.get("IM_KILL_EVERY", "21"))
"""Of so many calls each test kills at one; at which one it begins is chance, so that many runs kill at all of them."""

Keys = dict[bytes, bytes]


@pytest.fixture
def chat(valkey: str, database_url: str) -> Iterator[Chat]:
    settings = replace(
        Settings.from_env({}, redis_url=valkey, database_url=database_url),
        block_ms=0,
        retry_ms=0,
        partitions=PARTITIONS,
        receipt_window_ms=0,
        lease_ms=60,
    )
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        yield chat


@pytest.fixture
def older(chat: Chat) -> Keys:
    """Let others read what ann and bob have said; return what Redis had before they did."""
    for gid in GIDS:
        chat.create_group(gid, ["ann", "bob", "cyd", "dan"])
        for number in range(6):
            chat.send(gid, str(number), sender_uid=("ann", "bob")[number % 2])
    persist(chat)
    older = {key: chat.system.client.driver.dump(key) for key in chat.system.client.driver.scan_iter()}
    for gid in GIDS:
        said = chat.pull("cyd", gid)
        chat.ack("cyd", gid, said[3].msgid)
        chat.ack("dan", gid, said[5].msgid)
    run_workers(chat)
    chat.confirm_receipts("ann", chat.receipts("ann")[:2])
    persist(chat)
    return older


def lose(chat: Chat, left: Keys) -> None:
    chat.system.client.driver.flushall()
    chat.system.client.upgrade()
    for key, value in left.items():
        chat.system.client.driver.restore(key, 0, value)


def due(chat: Chat) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the receipts that wait for their senders."""
    return {(r.gid, r.msgid): (r.read, r.unread) for uid in ("ann", "bob") for r in chat.receipts(uid)}


def rebuild_all(chat: Chat) -> None:
    rebuild(chat.system, yes=True, adopt=True)


def step_of_worker(chat: Chat) -> None:
    with suppress(ImError):
        new_persist(chat.system.client, chat.system.database, chat.system.settings).step()


def repair(chat: Chat) -> None:
    list(check(chat.system, repair=True))


BEGINNINGS = [(rebuild_all, True), (rebuild_all, False), (step_of_worker, False), (repair, False)]


@pytest.mark.parametrize("end", [persist, repair])
@pytest.mark.parametrize(("begin", "loses_all"), BEGINNINGS)
def test_unconfirmed_receipts_come_again_wherever_a_repair_is_killed(
    chat: Chat, older: Keys, begin: Callable[[Chat], Any], loses_all: bool, end: Callable[[Chat], Any]
) -> None:
    expected, client = due(chat), chat.system.client
    assert len(expected) == 10
    left, is_done = random.randrange(STEP), False
    while not is_done:
        # Given a Redis that has lost receipts, and a process that repairs it and is killed at one of its calls
        left += STEP
        lose(chat, {} if loses_all else older)
        chat.system.client = dying = Dying(client.driver, partitions=PARTITIONS)
        dying.left = left
        with suppress(KilledError):
            begin(chat)
            is_done = dying.left > 0
        chat.system.client = client
        bury_the_dead(chat)
        # When somebody else ends the repair
        end(chat)
        # Then
        missing = expected.items() - due(chat).items()
        assert not missing, f"killed at call {left}"
        assert list(check(chat.system)) == []
