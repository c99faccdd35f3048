"""Random histories in which Redis loses all it had, or an older state of it comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from imcore.repair.rebuild import rebuild
from imcore.streams.keys import CONFIG, REBUILD, REBUILDING, lease
from imcore.workers.persist import Persist
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.dying import Dying, KilledError
from tests.helpers.persist_runs import new_persist
from tests.model.examples import PARTITIONS
from tests.model.histories import one_of
from tests.model.stored import STORING_STEPS, StoredHistories

LOSING_STEPS = {
    **STORING_STEPS,
    "lose_all": (2, (st.integers(0, 4),)),
    "lose_and_be_killed": (2, (st.integers(1, 30),)),
    "lose_and_leave_it_to_a_worker": (2, (st.integers(1, 30), st.sampled_from([0, 1, 4, 10_000]))),
}


class LosingHistories(StoredHistories):
    """Now and then Redis loses all it has, and is rebuilt."""

    @rule(step=one_of(LOSING_STEPS))
    def take(self, step: tuple[Any, ...]) -> None:
        super().take(step)

    def teardown(self) -> None:
        try:
            self.lose_all(10_000)
            self.check()
        finally:
            super().teardown()

    def new_worker(self) -> Persist:
        return new_persist(self.chat.system.client, self.chat.system.database, self.settings)

    def lose_all(self, keep: int) -> None:
        """Of each group this many messages come back into Redis; the others are trimmed."""
        self.lose()
        self.chat.system.settings = replace(self.chat.system.settings, keep_messages=keep)
        rebuild(self.chat.system)
        self.rebuilt()

    def lose_and_be_killed(self, calls_left: int) -> None:
        self.lose()
        with self.killed_after(calls_left) as was_killed:
            rebuild(self.chat.system)
        if was_killed:
            rebuild(
                self.chat.system, yes=True
            )  # killed at its very end, it has left whole data, over which it would ask
        self.rebuilt()

    def lose_and_leave_it_to_a_worker(self, calls_left: int, keep: int) -> None:
        """Nobody repeats a rebuild that was killed. Of each group this many messages come back into Redis."""
        self.lose()
        self.chat.system.settings = replace(self.chat.system.settings, keep_messages=keep)
        with self.killed_after(calls_left):
            rebuild(self.chat.system)
        if self.chat.system.client.driver.exists(CONFIG):
            worker = new_persist(
                self.chat.system.client, self.chat.system.database, replace(self.settings, keep_messages=keep)
            )
            worker.step()
            worker.close()
            assert not self.chat.system.client.driver.hexists(CONFIG, REBUILDING)
        else:
            rebuild(self.chat.system)
        self.rebuilt()

    @contextmanager
    def killed_after(self, calls: int) -> Iterator[list[KilledError]]:
        """Kill the body of the `with` after this many calls, if it makes that many; its lease ends then."""
        redis_client = self.chat.system.client
        dying = Dying(redis_client.driver, partitions=PARTITIONS)
        dying.left = calls
        self.chat.system.client = dying
        killed: list[KilledError] = []
        try:
            yield killed
        except KilledError as error:
            killed.append(error)
        dying.left = 10**9
        redis_client.driver.delete(lease(REBUILD, 1))
        self.chat.system.client = redis_client

    def lose(self) -> None:
        """Senders get receipts, and confirm a part of them; then Redis is emptied."""
        receipts = ReceiptsWorker(
            self.chat.system.client, self.chat.system.database, replace(self.settings, receipt_window_ms=0)
        )
        while receipts.step():
            pass
        receipts.close()
        for uid in self.model.uids():
            self.chat.confirm_receipts(uid, self.chat.receipts(uid)[::2])
        self.persist_all()
        self.receipts = self.all_receipts()
        self.chat.system.client.driver.flushall()

    def all_receipts(self) -> list[tuple[str, str, str, int, int, int]]:
        """What is still to be confirmed, and by whom."""
        receipts = ((uid, receipt) for uid in self.model.uids() for receipt in self.chat.receipts(uid))
        return [(uid, r.gid, r.msgid, r.read, r.unread, r.delivered) for uid, r in receipts]

    def rebuilt(self) -> None:
        """Receipts wait as before, and a repeated send is known; all else is compared as after any other step."""
        assert self.all_receipts() == self.receipts
        for gid, group in self.model.groups.items():
            for message in group.messages:
                if message.client_msgid:
                    resent = self.chat.send(gid, "?", sender_uid=message.sender_uid, client_msgid=message.client_msgid)
                    assert resent.msgid == message.msgid
        self.touched |= self.model.groups.keys()
        self.workers = [self.new_worker() for _ in self.workers]
