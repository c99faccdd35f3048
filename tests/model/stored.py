"""Random histories that workers store in SQL as they happen, some of which die over it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from imcore import Chat
from imcore.admin.audit import check
from imcore.admin.rebuild import rebuild
from imcore.admin.retention import trim
from imcore.sql.database import Database
from imcore.sql.rows import Batch
from imcore.streams import keys
from imcore.streams.link import Link
from tests.model.compare import compare_read_times, compare_sql
from tests.model.histories import STEPS, Histories, one_of
from workers.persist import KIND, Persist

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
        self.settings = replace(self.chat.settings, batch_size=4, block_ms=0, retry_ms=0)
        self.workers = [self.new_worker() for _ in range(WORKERS)]

    def teardown(self) -> None:
        try:
            self.persist_all()
            for gid in self.model.groups:
                compare_read_times(self.chat, self.model, gid)
            different = list(check(self.chat))
            assert different == []
        finally:
            super().teardown()

    @rule(step=one_of(STORING_STEPS))
    def take(self, step: tuple[Any, ...]) -> None:
        super().take(step)

    def new_worker(self) -> Persist:
        return Persist(self.chat.link, self.chat.database, self.settings)

    def persist(self, worker: int) -> None:
        self.workers[worker].step()

    def die(self, worker: int, committed: bool) -> None:
        """A worker is killed over a batch, before or after SQL has it. Its lease ends; another one takes its place."""
        self.workers[worker].close()
        dying = Persist(self.chat.link, Dying(self.chat.database, committed), self.settings)
        try:
            dying.step()
        except KilledError:
            self.chat.link.client.delete(keys.lease(KIND, int(dying.name.rpartition("-")[2])))
        else:
            dying.close()
        self.workers[worker] = self.new_worker()

    def persist_all(self) -> None:
        """Let a new worker store all there is, also what dead ones have left, and compare."""
        worker = self.new_worker()
        while worker.step():
            pass
        worker.close()
        compare_sql(self.chat.database, self.model)

    def trim(self, keep: int) -> None:
        """Drop from Redis what SQL has, but for the newest: nobody may notice."""
        trim(self.chat, keep_messages=keep)
        self.touched |= self.model.groups.keys()

    def check(self) -> None:
        """What is on its way is no difference; only that nobody may be there to bring it, which is about no group."""
        assert [difference for difference in check(self.chat) if difference.gid] == []


class RebuiltHistories(StoredHistories):
    """Redis is lost now and then. (fakeredis has no XSETID, without which none is rebuilt.)"""

    @rule(step=one_of({**STORING_STEPS, "lose_redis": (2, ())}))
    def take(self, step: tuple[Any, ...]) -> None:
        super().take(step)

    def lose_redis(self) -> None:
        """Redis loses all it had, when SQL has it: nobody may notice, once it is rebuilt."""
        self.persist_all()
        link = self.chat.link
        link.client.flushall()
        self.chat = Chat(Link(link.client, partitions=link.space.partitions), self.chat.database, self.chat.settings)
        rebuild(self.chat)
        self.workers = [self.new_worker() for _ in range(WORKERS)]
        self.touched |= self.model.groups.keys()


class KilledError(Exception):
    """What SIGKILL is here."""


class Dying(Database):
    """A database at whose first write its user dies."""

    def __init__(self, database: Database, committed: bool) -> None:
        super().__init__(database._backend)
        self._committed = committed

    def write(self, batch: Batch) -> None:
        if self._committed:
            super().write(batch)
        raise KilledError
