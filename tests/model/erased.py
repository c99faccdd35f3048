"""Random histories in which users are erased; some erasures are killed, and others repair meanwhile."""

from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from imcore import Chat
from imcore.admin.erasure import erase_user
from imcore.admin.retention import trim
from imcore.errors import NotMember, TryAgain, UserErasing
from imcore.model.erased import is_alias
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.streams.keys import uid_of
from imcore.system import System
from tests.helpers.dying import Dying, KilledError, bury_the_dead
from tests.helpers.leaks import leaks
from tests.helpers.workers import run_workers
from tests.model.histories import GIDS, UIDS, one_of, refusal
from tests.model.stored import STORING_STEPS, StoredHistories

_uid = st.sampled_from(UIDS)
_MEANWHILE = ("rebuild", "persist", "check", "repair", "trim", "join", "send")
_ERASING_STEPS = {
    **STORING_STEPS,
    "page": (1, STORING_STEPS["page"][1]),
    "send_direct": (4, STORING_STEPS["send_direct"][1]),
    "erase": (2, (_uid,)),
}


def _dying(*meanwhile: str) -> dict[str, Any]:
    return {
        "erase_and_die": (
            3,
            (_uid, st.integers(1, 120), st.booleans(), st.lists(st.sampled_from(meanwhile), max_size=3)),
        )
    }


class DyingWrites(Database):
    """A database whose user dies with one of its writes, before or after it is committed."""

    def __init__(self, database: Database, left: int, committed: bool) -> None:
        super().__init__(database._backend)
        self._left, self._committed = left, committed

    @contextmanager
    def writing(self) -> Any:
        self._left -= 1
        if self._left == 0 and not self._committed:
            raise KilledError
        with super().writing() as connection:
            yield connection
        if self._left == 0:
            raise KilledError

    def write(self, batch: Any) -> None:
        self._left -= 1
        if self._left == 0 and not self._committed:
            raise KilledError
        super().write(batch)
        if self._left == 0:
            raise KilledError


class ErasedHistories(StoredHistories):
    """After each erasure nothing has the name or one of the texts, and everything else is as before."""

    def __init__(self, open_chat: Callable[[], Chat]) -> None:
        super().__init__(open_chat)
        self.texts: dict[str, set[str]] = {}
        """What each user has written."""
        self.gone: set[str] = set()
        self.sent = 0

    def teardown(self) -> None:
        try:
            found = leaks(self.chat, self.gone)
            assert found == [], found
        finally:
            super().teardown()

    @rule(step=one_of({**_ERASING_STEPS, **_dying(*_MEANWHILE)}))
    def take(self, step: tuple[Any, ...]) -> None:
        super().take(step)

    def send(self, gid: str, uid: str, content: str, client_msgid: Any, meta: Any = None) -> None:
        super().send(gid, uid, self._unlike(uid, content), client_msgid, meta)

    def send_direct(self, uid: str, to: str, content: str, client_msgid: Any, meta: Any) -> None:
        super().send_direct(uid, to, self._unlike(uid, content), client_msgid, meta)

    def _unlike(self, uid: str, content: str) -> str:
        self.sent += 1
        words = f"{content} text no. {self.sent}."
        self.texts.setdefault(uid, set()).add(f"text no. {self.sent}.")
        return words

    def persist(self, worker: int) -> None:
        with suppress(TryAgain):  # an erasure is a repair: the worker reads its entries again
            super().persist(worker)

    def die(self, worker: int, committed: bool) -> None:
        with suppress(TryAgain):
            super().die(worker, committed)

    def erase(self, uid: str) -> None:
        self._erase(self.chat.system, uid)
        self._erased(uid)

    def erase_and_die(self, uid: str, after: int, in_sql: bool, meanwhile: list[str]) -> None:
        """An erasure is killed, at Redis or at SQL; others do this and that; and it is repeated."""
        system = self.chat.system
        redis, database = system.client, system.database
        if in_sql:
            database = DyingWrites(database, 1 + after % 12, committed=after % 2 == 0)
        else:
            redis = Dying(system.client.driver, partitions=system.client.space.partitions)
            redis.left = after
        with suppress(KilledError):
            erase_user(System(redis, database, system.settings), uid)
        bury_the_dead(self.chat)
        for what in meanwhile:
            getattr(self, f"_meanwhile_{what}")(uid)
            bury_the_dead(self.chat)
        self._erase(system, uid)
        self._erased(uid)

    def _erase(self, system: System, uid: str) -> None:
        own = sum(m.sender_uid == uid and not m.recalls for g in self.model.groups.values() for m in g.messages)
        erased = erase_user(system, uid)
        assert erased.uid == uid
        assert erased.messages <= own  # the rest was done before it was killed

    def _meanwhile_persist(self, uid: str) -> None:
        self.persist(0)

    def _meanwhile_check(self, uid: str) -> None:
        of_groups = [each for each in check(self.chat.system) if each.gid]
        assert of_groups == [], of_groups

    def _meanwhile_repair(self, uid: str) -> None:
        list(check(self.chat.system, repair=True))

    def _meanwhile_trim(self, uid: str) -> None:
        trim(self.chat.system, keep_messages=1)

    def _meanwhile_join(self, uid: str) -> None:
        """The name cannot be used before the end."""
        client = self.chat.system.client
        if client.query("HEXISTS", client.space.erasing(0), uid):
            for gid in self.model.groups.keys() & set(GIDS):
                if client.space.partition_of(gid) == 0 and not self._is_member(gid, uid):
                    assert refusal(lambda gid=gid: self.chat.add_members(gid, [uid])) is UserErasing

    def _is_member(self, gid: str, uid: str) -> bool:
        client = self.chat.system.client
        return client.query("ZSCORE", client.space.group(gid).acked, uid) is not None

    def _meanwhile_send(self, uid: str) -> None:
        """Others send, where the user may have left by now, and cannot send any more."""
        for gid in sorted(self.model.groups.keys() & set(GIDS)):
            if not self._is_member(gid, uid):
                self.model.remove_members(gid, [uid])
                assert refusal(lambda gid=gid: self.chat.send(gid, "no", sender_uid=uid)) is NotMember
            for peer in self.model.groups[gid].members():
                if peer != uid:
                    self.send(gid, peer, "meanwhile", None)

    def _meanwhile_rebuild(self, uid: str) -> None:
        client = self.chat.system.client
        run_workers(self.chat)
        client.driver.flushall()
        database, settings = self.chat.system.database, self.chat.system.settings
        self.chat = Chat(System(RedisClient(client.driver, partitions=client.space.partitions), database, settings))
        rebuild(self.chat.system)
        self.workers = [self.new_worker() for _ in self.workers]

    def _erased(self, uid: str) -> None:
        """Let the model know, and look for what is left."""
        self._rename_chats(uid)
        self.model.erase(uid, self._new_alias())
        self.gone |= self.texts.pop(uid, set())
        self.touched |= self.model.groups.keys()
        run_workers(self.chat)
        words = set() if uid in GIDS else {uid}
        found = leaks(self.chat, self.gone | words)
        assert found == [], found

    def _rename_chats(self, uid: str) -> None:
        for pair, gid in list(self.direct.items()):
            if uid in pair:
                del self.direct[pair]
                group = self.model.groups.pop(gid)
                first = group.messages[0].msgid
                [new_gid] = [
                    each.gid
                    for each in self.chat.groups()
                    if each.gid not in self.model.groups and self._begins_with(each.gid, first)
                ]
                self.model.groups[new_gid] = group

    def _begins_with(self, gid: str, msgid: str) -> bool:
        return any(tally.message.msgid == msgid for tally in self.chat.status(gid, limit=0))

    def _new_alias(self) -> str:
        """Return the name that nobody had before; any name if there is no trace of the user."""
        names = {tally.message.sender_uid for gid in self.model.groups for tally in self.chat.status(gid, limit=0)}
        for gid in self.model.groups:
            keys = self.chat.system.client.query("ZRANGE", self.chat.system.client.space.group(gid).joined, 0, -1)
            names |= {uid_of(key.decode()) for key in keys}
        known = {m.sender_uid for g in self.model.groups.values() for m in g.messages} | set(self.model.uids())
        new = {name for name in names - known if is_alias(name)}
        assert len(new) <= 1
        return next(iter(new), "erased-" + "0" * 16)
