"""Two workers side by side, killed and started again at random moments: no row is lost, none is there twice."""

import os
import random
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.model.values import Draft
from imcore.settings import Settings
from imcore.streams import dead_letters
from imcore.streams.calls.message_calls import AckTarget, ack, send
from imcore.workers.persist import KIND
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import require_postgres, running_postgres
from tests.helpers.processes import WorkerProcess
from tests.helpers.rows import count_moves
from tests.helpers.workers import run_bursts, start_worker

KILLS = 6
SEED = int(os.environ.get("IM_KILL_SEED", time.time_ns() % 1_000_000))
GIDS = [f"g{number}" for number in range(10)]
UIDS = [f"user{number}" for number in range(8)]


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    require_postgres()
    with running_postgres() as server:
        yield server.new_database()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_workers_lose_nothing_and_repeat_nothing(
    valkey: str, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    # Given two workers at work, and people who talk all the time
    database_url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
    urls = {"redis_url": valkey, "database_url": database_url}
    settings = Settings.from_env({}, data_dir=str(tmp_path), lease_ms="500", **urls)
    print("IM_KILL_SEED", SEED)
    dice = random.Random(SEED)
    with Chat.connect(settings=settings) as chat:
        talk = _Talk(chat, dice)
        run_bursts(settings, "persist")
        workers = [start(settings) for _ in range(2)]
        in_hand = []

        # When one of them is killed in the middle of its work, again and again
        try:
            for _ in range(KILLS):
                place = dice.randrange(2)
                wait_until(partial(talk.until_in_hand, workers[place]), timeout_s=30)
                workers[place].kill()
                in_hand.append(open_entries(chat, workers[place]))
                workers[place] = start(settings)
        finally:
            for worker in workers:
                worker.kill()
        run_bursts(settings, "persist")

        # Then it was in the middle of its work

        assert any(in_hand)

        # And everything is stored, once
        talk.compare_sql()
        assert list(dead_letters.list_dead(chat.system.client)) == []


def start(settings: Settings) -> WorkerProcess:
    """Start a worker with small batches, so that there are many moments to be killed at."""
    return start_worker(settings, batch_size=2)


def count(chat: Chat, table: str) -> int:
    with chat.system.database.connection() as connection:
        rows: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    return rows


def open_entries(chat: Chat, worker: WorkerProcess) -> int:
    """How many entries a worker has taken and not done."""
    [*_, name] = re.findall(r"working as (\S+)", worker.log) or [""]
    groups = [chat.system.client.driver.xpending(key, KIND)["consumers"] for key in chat.system.client.space.journals()]
    return sum(each["pending"] for consumers in groups for each in consumers if each["name"].decode() == name)


class _Talk:
    """Ten groups in which all talk, ack, leave and come back."""

    def __init__(self, chat: Chat, dice: random.Random) -> None:
        self._chat = chat
        self._dice = dice
        self._moves = 0
        for gid in GIDS:
            chat.create_group(gid, UIDS)

    def go_on(self) -> None:
        """Send some 300 messages more, in 100 calls, with acks in between."""
        space = self._chat.system.client.space
        for gid in GIDS:
            self._come_and_go(gid)
            self._chat.system.client.call_many([send(space, gid, self._drafts(), 1000) for _ in range(10)])
            uids = self._dice.sample(UIDS, 3)
            [acked] = self._chat.system.client.call(ack(space, gid, [AckTarget(None, uids)]))
            self._moves += len(uids) - len(acked.unmoved)

    def until_in_hand(self, worker: WorkerProcess) -> int:
        """Say more; return how many entries that worker has in hand now."""
        self.go_on()
        return open_entries(self._chat, worker)

    def _come_and_go(self, gid: str) -> None:
        uid = self._dice.choice(UIDS)
        self._chat.remove_members(gid, [uid])
        self._chat.add_members(gid, [uid])

    def _drafts(self) -> list[Draft]:
        return [Draft(self._dice.choice(UIDS), f"{number}") for number in range(self._dice.randint(1, 5))]

    def compare_sql(self) -> None:
        """Compare SQL with Redis."""
        chat = self._chat
        with chat.system.database.connection() as connection:
            messages = connection.execute(text("SELECT gid, seq FROM group_msgs ORDER BY gid, msgid")).all()
            users = connection.execute(text("SELECT gid, uid, last_ack_msgid FROM group_users ORDER BY gid, uid")).all()
        groups = list(chat.groups())
        assert [tuple(row) for row in messages] == [(g.gid, seq) for g in groups for seq in range(1, g.messages + 1)]
        assert [(gid, uid, msgids.unpack_offset(acked or 0)) for gid, uid, acked in users] == [
            (gid, member.uid, member.last_ack_msgid) for gid in GIDS for member in chat.members(gid)
        ]
        assert count_moves(chat.system.database) == self._moves
        assert count(chat, "chat_groups") == len(GIDS)
