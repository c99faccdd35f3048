"""A power cut: Redis comes back from an append-only file that ends somewhere, older than SQL or not, and is reconciled.

People talk, real chat where there is some, and two workers store what they say, one of which may die over it. The
server is killed and its file cut at any byte. It starts again, people go on before a worker comes to it, and after.
Then all is held against a model: what SQL had, what Redis still had, and what was said since.

`IM_POWER_CUT_SEEDS=200 pytest tests/integration/test_power_cut.py` plays that many of them; CI plays six.
"""

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.repair.check import check
from imcore.settings import Settings
from imcore.streams.client import RedisClient, open_client
from imcore.streams.keys import lease
from imcore.workers.persist import KIND
from tests.helpers.chat_data import chat_files
from tests.helpers.deadline import wait_until
from tests.helpers.dying import DyingDatabase as Dying
from tests.helpers.dying import KilledError
from tests.helpers.persist_runs import new_persist
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import require_server, start_valkey

SEEDS = range(int(os.environ.get("IM_POWER_CUT_SEEDS", "6")))
GIDS = ("#ubuntu", "群主", "{x}")
PARTITIONS = 2
MEMBERS = 6

SPANS = "SELECT gid, uid, joined_msgid, left_msgid, acked_msgid FROM group_spans"

Place = tuple[str, str]
"""A gid and a msgid."""


@cache
def said() -> list[list[tuple[str, str]]]:
    """What was said in each file, and by whom."""
    files = [
        [(event["uid"], event["content"]) for event in file.events()[:3000] if event["type"] == "message"]
        for file in chat_files()
    ]
    return [lines for lines in files if len(lines) > 200]


@dataclass(frozen=True)
class Known:
    """What one side has: contents by gid and msgid, offsets (packed) by gid, uid and beginning, and who is a member."""

    messages: dict[Place, str]
    offsets: dict[tuple[str, str, int], int]
    members: list[tuple[str, str, int]]


def in_sql(chat: Chat) -> Known:
    with chat.system.database.connection() as connection:
        messages = connection.execute(text("SELECT gid, msgid, content FROM group_msgs")).all()
        spans = connection.execute(
            text("SELECT gid, uid, joined_msgid, left_msgid, acked_msgid FROM group_spans")
        ).all()
    return Known(
        {(gid, msgids.unpack(msgid)): content for gid, msgid, content in messages},
        {(gid, uid, joined): acked for gid, uid, joined, _, acked in spans},
        [(gid, uid, joined) for gid, uid, joined, left, _ in spans if left is None],
    )


def in_redis(chat: Chat) -> Known:
    messages, offsets = {}, {}
    for group in chat.groups():
        for tally in chat.status(group.gid, limit=0):
            messages[group.gid, tally.message.msgid] = tally.message.content
        k = chat.system.client.space.group(group.gid)
        for member in chat.members(group.gid):
            joined, acked = (int(chat.system.client.query("ZSCORE", key, member.uid)) for key in (k.joined, k.acked))
            offsets[group.gid, member.uid, joined] = acked
    return Known(messages, offsets, list(offsets))


@dataclass
class People:
    """They send, pull and ack, come and go, by chance; and note what they were told."""

    chat: Chat
    random: random.Random
    said: dict[Place, str] = field(default_factory=dict)
    recalled: dict[Place, Place] = field(default_factory=dict)
    """What was recalled, and by which tombstone."""
    by: dict[Place, tuple[str, str]] = field(default_factory=dict)
    """Sender and client_msgid of what was said, by gid and msgid."""
    pulled: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Which msgids somebody has pulled, by gid and uid."""
    number: int = 0

    def __post_init__(self) -> None:
        lines = self.random.choice(said())
        start = self.random.randrange(len(lines) - 150)
        self.lines = lines[start : start + 150]
        self.uids = sorted({uid for uid, _ in self.lines})[:MEMBERS]

    def begin(self) -> None:
        for gid in GIDS:
            self.chat.create_group(gid, self.uids[: MEMBERS // 2])

    def step(self) -> None:
        steps = [self.send] * 5 + [self.ack] * 4 + [self.join, self.leave, self.recall]
        with suppress(ImError):
            self.random.choice(steps)(self.random.choice(GIDS), self.random.choice(self.uids))

    def send(self, gid: str, uid: str) -> None:
        self.number += 1
        _, content = self.lines[self.number % len(self.lines)]
        message = self.chat.send(gid, content, sender_uid=uid, client_msgid=f"c{self.number}")
        assert (gid, message.msgid) not in self.said
        self.said[gid, message.msgid] = content
        self.by[gid, message.msgid] = (uid, f"c{self.number}")

    def ack(self, gid: str, uid: str) -> None:
        pulled = self.pull(gid, uid)
        if pulled:
            self.chat.ack(uid, gid, self.random.choice(pulled))

    def pull(self, gid: str, uid: str) -> list[str]:
        pulled = [message.msgid for message in self.chat.pull(uid, gid)]
        assert all(msgids.pack(one) < msgids.pack(other) for one, other in pairwise(pulled))
        self.pulled[gid, uid].update(pulled)
        return pulled

    def forget(self, known: set[Place]) -> None:
        """Forget all messages but these: nobody was told that the others are safe. Pulled messages must come again."""
        self.said = {place: content for place, content in self.said.items() if place in known}
        self.recalled = {place: tombstone for place, tombstone in self.recalled.items() if tombstone in known}
        self.pulled.clear()

    def join(self, gid: str, uid: str) -> None:
        self.chat.add_members(gid, [uid])

    def leave(self, gid: str, uid: str) -> None:
        self.chat.remove_members(gid, [uid])

    def recall(self, gid: str, uid: str) -> None:
        own = [msgid for (g, msgid), (sender, _) in self.by.items() if (g, sender) == (gid, uid)]
        if own:
            msgid = self.random.choice(own)
            tombstone = self.chat.recall(gid, msgid, by=uid)
            self.said[gid, tombstone.msgid] = ""
            self.recalled[gid, msgid] = (gid, tombstone.msgid)


class Staff:
    """Two workers, each with a connection of its own."""

    def __init__(self, chat: Chat, url: str, chance: random.Random) -> None:
        self._chat = chat
        self._chance = chance
        self._settings = replace(chat.system.settings, lease_ms=chance.choice([60, 700]))
        self._links = [RedisClient(open_client(url), partitions=PARTITIONS) for _ in range(2)]
        self._workers = [new_persist(client, chat.system.database, self._settings) for client in self._links]

    def step(self) -> None:
        with suppress(ImError):
            self._chance.choice(self._workers).step()

    def die(self) -> None:
        """Another worker takes a batch and dies: the others handle later entries, and SQL has a hole."""
        dying = new_persist(
            self._chat.system.client, Dying(self._chat.system.database, committed=False), self._settings
        )
        with suppress(KilledError):
            dying.step()
        self._chat.system.client.driver.delete(lease(KIND, int(dying._journal.lease.name.rpartition("-")[2])))

    def drain(self) -> None:
        wait_until(self._is_drained, timeout_s=30)

    def _is_drained(self) -> bool:
        try:
            if sum(worker.step() for worker in self._workers):
                return False
            # One that died before the cut may be alive again by what Redis has, until its lease ends
            journals = self._chat.system.client.space.journals()
            return not any(self._chat.system.client.driver.xpending(key, KIND)["pending"] for key in journals)
        except ImError:
            return False

    def close(self) -> None:
        for worker, client in zip(self._workers, self._links, strict=True):
            worker.close()
            client.close()


class Power:
    """A server, whose power may be cut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keep = 0
        self._start()

    @property
    def url(self) -> str:
        return self._server.url

    def secure(self) -> None:
        """What is in the file by now stays there."""
        self._keep = self._log.stat().st_size

    def cut(self, chance: random.Random) -> None:
        """Kill the server, cut its file somewhere, and start it again: mostly little is gone, at times all that may."""
        self._lose(chance.random() ** chance.choice([1, 3]))

    def cut_all(self) -> None:
        """Kill the server and start it again with what is secured, and nothing else."""
        self._lose(1)

    def _lose(self, share: float) -> None:
        self._server.kill()
        size = self._log.stat().st_size
        os.truncate(self._log, size - int((size - self._keep) * share))
        self._start()

    def stop(self) -> None:
        self._server.stop()

    def _start(self) -> None:
        self._server = start_valkey(self._folder, "--aof-load-truncated", "yes")

    @property
    def _log(self) -> Path:
        """The append-only file that is written now."""
        logs = (self._folder / "appendonlydir").glob("*.incr.aof")
        return max(logs, key=lambda path: int(path.name.split(".")[-3]))


@pytest.fixture
def power(tmp_path: Path) -> Iterator[Power]:
    require_server()
    power = Power(tmp_path / "server")
    yield power
    power.stop()


@pytest.fixture
def chat(power: Power, sqlite_url: str) -> Iterator[Chat]:
    settings = replace(Settings.from_env({}), block_ms=0, retry_ms=0, partitions=PARTITIONS, batch_size=4)
    with Chat.connect(power.url, sqlite_url, settings=settings) as chat:
        chat.system.database.upgrade()
        yield chat


@pytest.mark.parametrize("seed", SEEDS)
def test_power_cut_loses_nothing_that_is_known(power: Power, chat: Chat, seed: int) -> None:
    # Given people who talk, and workers who store a part of it
    chance = random.Random(seed)
    people = People(chat, chance)
    people.begin()
    power.secure()
    with closing(Staff(chat, power.url, chance)) as staff:
        for _ in range(chance.randrange(20, 120)):
            people.step()
            if chance.random() < 0.3:
                staff.step()
        if chance.random() < 0.5:
            staff.die()
            staff.step()
        # When the power is cut
        power.cut(chance)
        stored, left = in_sql(chat), in_redis(chat)
        people.forget({*stored.messages, *left.messages})
        # And people continue before the workers come to it, and after
        for _ in range(chance.randrange(30)):
            people.step()
        for _ in range(chance.randrange(10, 40)):
            people.step()
            staff.step()
        staff.drain()
        # Then
        assert_known(chat, people, stored, left)
        staff.drain()
        assert_alike(chat)


def assert_known(chat: Chat, people: People, stored: Known, left: Known) -> None:
    """Check that all known messages are there, once; nobody missed any; no offset is behind; a resend adds nothing."""
    now = in_sql(chat)
    assert now.messages.keys() == stored.messages.keys() | left.messages.keys() | people.said.keys()
    for place, content in people.said.items():
        assert now.messages[place] == ("" if place in people.recalled else content)
    for span, acked in stored.offsets.items():
        assert now.offsets.get(span, acked) >= acked
    for gid, uid, joined in now.members:
        people.pull(gid, uid)
        passed = max(known.offsets.get((gid, uid, joined), joined) for known in (stored, left))
        visible = {msgid for g, msgid in now.messages if g == gid and msgids.pack(msgid) > passed}
        own = {msgid for (g, msgid), (sender, _) in people.by.items() if (g, sender) == (gid, uid)}
        missed = visible - people.pulled[gid, uid] - own
        assert not {m for m in missed if now.messages[gid, m]}, (gid, uid)
    for (gid, msgid), (uid, client_msgid) in people.by.items():
        if (gid, msgid) in now.messages:
            assert chat.send(gid, "again", sender_uid=uid, client_msgid=client_msgid).msgid == msgid


def assert_alike(chat: Chat) -> None:
    """Redis and SQL agree; seqs have no holes; and each tally is what the definition says."""
    assert list(check(chat.system)) == []
    with chat.system.database.connection() as connection:
        spans = connection.execute(
            text("SELECT gid, uid, joined_msgid, left_msgid, acked_msgid FROM group_spans")
        ).all()
    for gid in GIDS:
        tallies = chat.status(gid, limit=0)
        assert [tally.message.seq for tally in tallies] == list(range(1, len(tallies) + 1))
        for tally in tallies:
            at = msgids.pack(tally.message.msgid)
            reads = [
                acked >= at
                for g, uid, joined, end, acked in spans
                if g == gid and uid != tally.message.sender_uid and joined < at and (end is None or at <= end)
            ]
            assert (tally.read, tally.unread) == (sum(reads), len(reads) - sum(reads))


def test_worker_processes_notice_a_power_cut(power: Power, chat: Chat, tmp_path: Path) -> None:
    # Given two processes that store, one that publishes receipts, and their results
    chat.create_group("team", ["ann", "bob"])
    power.secure()
    urls = {"redis_url": power.url, "database_url": f"sqlite:///{tmp_path / 'imcore.db'}", "partitions": PARTITIONS}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(WorkerProcess(tmp_path / name, kind, block_ms=100, **urls))
            for name, kind in (("one", "persist"), ("two", "persist"), ("three", "receipts"))
        ]
        before = [chat.send("team", f"before {number}", sender_uid="ann") for number in range(30)]
        chat.ack("bob", "team", before[19].msgid)
        wait_until(lambda: len(in_sql(chat).messages) == 30 and ("team", "bob", 0) in in_sql(chat).offsets)
        wait_until(lambda: in_sql(chat).offsets["team", "bob", 0] == msgids.pack(before[19].msgid))
        # When
        power.cut_all()
        since = chat.send("team", "since", sender_uid="bob")
        # Then the two become one, and nobody gets another answer
        wait_until(lambda: len(chat.status("team", limit=0)) == 31, timeout_s=30)
        assert [message.msgid for message in chat.pull("bob", "team")] == [m.msgid for m in [*before[20:], since]]
        assert [(t.read, t.unread) for t in chat.status("team", limit=0)] == [(1, 0)] * 20 + [(0, 1)] * 11
        # And all continues: messages are stored, and senders get receipts
        chat.ack("bob", "team")
        wait_until(lambda: len([r for r in chat.receipts("ann") if r.read == 1]) == 30)
        wait_until(lambda: list(check(chat.system)) == [], timeout_s=30)
        assert any("Redis is older than SQL" in worker.log for worker in workers)
        assert [worker.end() for worker in workers] == [0, 0, 0]
