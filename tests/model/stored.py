"""Random histories, stored in SQL meanwhile by workers; some workers die over it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from imcore import Chat
from imcore.admin.retention import trim
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.streams import keys
from imcore.streams.client import RedisClient
from imcore.system import System
from imcore.workers.persist import KIND, Persist
from tests.helpers.dying import DyingDatabase, KilledError
from tests.helpers.persist_runs import new_persist
from tests.helpers.workers import drain
from tests.model.compare import compare_read_times, compare_sql
from tests.model.histories import STEPS, Histories, one_of

WORKERS = 2

_worker = st.integers(0, WORKERS - 1)
STORING_STEPS = {
    **STEPS,
    "persist": (6, (_worker,)),
    "die": (2, (_worker, st.booleans())),
    "persist_all": (2, ()),
    "trim": (2, (st.integers(0, 3),)),
    "check": (1, ()),
}


class StoredHistories(Histories):
    """Whenever the workers have stored all there is, SQL is compared too."""

    def __init__(self, open_chat: Callable[[], Chat]) -> None:
        super().__init__(open_chat)
        # Few entries a batch, so that there are many batches; and no wait: the server counts in 0.1 s
        self.settings = replace(self.chat.system.settings, batch_size=4, block_ms=0, retry_ms=0)
        self.workers = [self.new_worker() for _ in range(WORKERS)]

    def teardown(self) -> None:
        try:
            self.persist_all()
            for gid in self.model.groups:
                compare_read_times(self.chat, self.model, gid)
            different = list(check(self.chat.system))
            assert different == []
        finally:
            super().teardown()

    @rule(step=one_of(STORING_STEPS))
    def take(self, step: tuple[Any, ...]) -> None:
        super().take(step)

    def new_worker(self) -> Persist:
        return new_persist(self.chat.system.client, self.chat.system.database, self.settings)

    def persist(self, worker: int) -> None:
        self.workers[worker].step()

    def die(self, worker: int, committed: bool) -> None:
        """A worker is killed over a batch, before or after SQL has it. Its lease ends; another one takes its place."""
        self.workers[worker].close()
        dying = new_persist(self.chat.system.client, DyingDatabase(self.chat.system.database, committed), self.settings)
        try:
            dying.step()
        except KilledError:
            self.chat.system.client.driver.delete(keys.lease(KIND, int(dying._journal.lease.name.rpartition("-")[2])))
        else:
            dying.close()
        self.workers[worker] = self.new_worker()

    def persist_all(self) -> None:
        """Let a new worker store all there is, also what dead ones have left, and compare."""
        worker = self.new_worker()
        drain(worker)
        worker.close()
        compare_sql(self.chat.system.database, self.model)

    def trim(self, keep: int) -> None:
        """Drop from Redis what SQL has, but for the newest: nobody may notice."""
        trim(self.chat.system, keep_messages=keep)
        self.touched |= self.model.groups.keys()

    def check(self) -> None:
        """What is on its way is no difference; only that nobody may be there to bring it, which is about no group."""
        assert [difference for difference in check(self.chat.system) if difference.gid] == []


class RebuiltHistories(StoredHistories):
    """Redis is lost now and then. (fakeredis has no XSETID, without which none is rebuilt.)"""

    @rule(step=one_of({**STORING_STEPS, "lose_redis": (2, ())}))
    def take(self, step: tuple[Any, ...]) -> None:
        super().take(step)

    def lose_redis(self) -> None:
        """Redis loses all it had, when SQL has it: nobody may notice, once it is rebuilt."""
        self.persist_all()
        client = self.chat.system.client
        client.driver.flushall()
        self.chat = Chat(
            System(
                RedisClient(client.driver, partitions=client.space.partitions),
                self.chat.system.database,
                self.chat.system.settings,
            )
        )
        rebuild(self.chat.system)
        self.workers = [self.new_worker() for _ in range(WORKERS)]
        self.touched |= self.model.groups.keys()
