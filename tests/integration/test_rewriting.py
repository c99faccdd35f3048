"""Rewrites on a real server: beside everybody else, killed at any step, and in steps of a bounded size."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat, Draft
from imcore.admin import retention
from imcore.errors import ImError, RedisFull, TryAgain
from imcore.repair import rewriting
from imcore.repair.apply import mend
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.repair.rewriting import Rewriting, rewrite, rewrite_all
from imcore.repair.window import packed
from imcore.settings import Settings
from tests.helpers.deadline import wait_until
from tests.helpers.dying import Dying, KilledError
from tests.helpers.processes import Process
from tests.helpers.workers import run_workers

GID = "team"
SECRET = "SECRET-4711"
MOST_COMMANDS = 7_000
"""A step may run this many commands: these take the server less than 10 ms."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=1, receipt_window_ms=0, partitions=2)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


def entries(chat: Chat) -> list[tuple[bytes, dict[bytes, bytes]]]:
    found: list[Any] = chat.system.client.query("XRANGE", chat.system.client.space.group(GID).stream, "-", "+")
    return found


def has_secret(chat: Chat) -> bool:
    return any(SECRET.encode() in fields[b"text"] for _, fields in entries(chat))


def followers(chat: Chat) -> dict[str, int]:
    """The offset of each consumer group."""
    k = chat.system.client.space.group(GID)
    infos = chat.system.client.query("XINFO GROUPS", k.stream)
    return {info["name"].decode(): packed(info["last-delivered-id"].decode()) for info in infos}


def offsets(chat: Chat) -> dict[str, int]:
    """The offset of each member, as the sorted set has it."""
    scores = chat.system.client.query("ZRANGE", chat.system.client.space.group(GID).acked, 0, -1, "WITHSCORES")
    pairs = [(name.decode(), int(score)) for name, score in scores]
    return {name: score for name, score in pairs if "\x1f" not in name}


def running(code: str, settings: Settings) -> Process:
    """A Python process with these settings."""
    environment = {"IM_REDIS_URL": settings.redis_url, "IM_DATABASE_URL": settings.database_url, "IM_PARTITIONS": "2"}
    environment |= {"IM_DATA_DIR": str(settings.data_dir), "PYTHONPATH": os.pathsep.join(sys.path)}
    return Process(subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment}))


def recall_secrets(chat: Chat, count: int = 3) -> None:
    for sent in [chat.send(GID, SECRET, sender_uid="ann") for _ in range(count)]:
        chat.recall(GID, sent.msgid, by="ann")


class TestBeside:
    @pytest.fixture
    def chat(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Chat:
        """A group of 200 with 150 messages, of which two are recalled; steps are small."""
        monkeypatch.setattr(rewriting, "PAGE", 20)
        chat.create_group(GID, ["ann", *(f"user{number}" for number in range(200))])
        recall_secrets(chat, 2)
        chat.send_many(GID, [Draft(f"user{number % 60}", f"message {number}") for number in range(150)])
        return chat

    @pytest.mark.parametrize("seed", range(6))
    def test_all_that_happens_meanwhile_is_in_the_new_stream(self, chat: Chat, other: Chat, seed: int) -> None:
        chance = random.Random(seed)
        sent = [tally.message for tally in chat.status(GID, limit=0)]

        for uid in ("user1", "user2", "user3"):
            other.ack(uid, GID)  # their offsets move with what they send

        def something() -> None:
            uid = f"user{chance.randrange(220)}"
            caught_up = f"user{chance.randrange(1, 4)}"
            what: Callable[[], object] = chance.choice(
                [
                    lambda: sent.append(other.send(GID, f"by {uid}", sender_uid=uid)),
                    lambda: sent.append(other.send(GID, f"by {caught_up}", sender_uid=caught_up)),
                    lambda: other.ack(uid, GID, chance.choice(sent).msgid),
                    lambda: other.ack_many(GID, [(f"user{n}", chance.choice(sent).msgid) for n in range(0, 200, 17)]),
                    lambda: [other.ack(f"user{number}", GID) for number in range(1, 4)],
                    lambda: other.add_members(GID, [uid]),
                    lambda: other.remove_members(GID, [uid]),
                    lambda: sent.append(other.recall(GID, other.send(GID, SECRET, sender_uid="ann").msgid, by="ann")),
                    lambda: retention.trim(other.system, keep_messages=100, gid=GID),
                    lambda: run_workers(other),
                ]
            )
            with suppress(ImError):  # no member, for example
                what()

        def meanwhile() -> None:
            for _ in range(chance.randrange(4)):
                something()

        for _ in range(3):
            assert rewrite(chat.system.client, GID, on_step=meanwhile)
            assert followers(chat) == offsets(chat)
            meanwhile()
        rewrite_all(chat.system.client)
        assert not has_secret(chat)
        assert followers(chat) == offsets(chat)
        run_workers(chat)
        assert list(check(chat.system)) == []
        assert [tally.message.seq for tally in chat.status(GID, limit=0)] == list(
            range(1, chat.group(GID).messages + 1)
        )

    def test_a_trim_of_the_journal_lets_it_begin_again(self, chat: Chat, other: Chat) -> None:
        run_workers(other)
        with pytest.raises(TryAgain, match="trimmed"):
            rewrite(chat.system.client, GID, on_step=lambda: retention.trim(other.system) and None)
        assert has_secret(chat)
        assert rewrite(chat.system.client, GID)
        assert not has_secret(chat)

    def test_a_trimmed_stream_keeps_its_trim_point(self, chat: Chat) -> None:
        run_workers(chat)
        retention.trim(chat.system, keep_messages=50)
        sent = chat.send(GID, SECRET, sender_uid="ann")
        chat.recall(GID, sent.msgid, by="ann")
        before = [tally.message for tally in chat.status(GID, limit=0)]
        info = chat.system.client.query("XINFO STREAM", chat.system.client.space.group(GID).stream)

        assert rewrite_all(chat.system.client) == 1

        assert [tally.message for tally in chat.status(GID, limit=0)] == before
        now = chat.system.client.query("XINFO STREAM", chat.system.client.space.group(GID).stream)
        same = ("length", "last-generated-id", "entries-added", "groups", "first-entry", "max-deleted-entry-id")
        assert {name: now[name] for name in same} == {name: info[name] for name in same}
        run_workers(chat)
        assert list(check(chat.system)) == []

    def test_a_repair_waits_for_its_end(self, chat: Chat, other: Chat) -> None:
        run_workers(chat)
        done: list[object] = []
        rewrite(chat.system.client, GID, on_step=lambda: done.append(other.send(GID, "hi", sender_uid="ann")))
        assert mend(chat.system, GID).restored == 0
        run_workers(chat)
        assert list(check(chat.system)) == []

    def test_a_text_that_repair_brings_back_leaves_again(self, chat: Chat) -> None:
        # Given a Redis that has lost the recalls, which SQL has
        run_workers(chat)
        client, k = chat.system.client, chat.system.client.space.group(GID)
        client.execute_once("DEL", k.recalled)
        client.execute_once("DEL", k.rewrites)
        assert list(check(chat.system))

        # When it is repaired
        assert all(each.repaired for each in check(chat.system, repair=True))

        # Then the next rewrite frees the stream
        assert has_secret(chat)
        assert rewrite_all(client) == 1
        assert not has_secret(chat)
        assert list(check(chat.system)) == []

    def test_a_rebuild_brings_no_text_back(self, chat: Chat) -> None:
        run_workers(chat)
        chat.system.client.driver.flushdb()
        rebuild(chat.system)
        assert not has_secret(chat)
        assert rewrite_all(chat.system.client) == 0

    def test_a_full_redis_is_left_as_it_is(self, chat: Chat) -> None:
        driver: Any = chat.system.client.driver
        driver.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisFull):
                rewrite(chat.system.client, GID)
            assert Rewriting(chat.system.client).look() == 0
            assert rewrite_all(chat.system.client) == 0
        finally:
            driver.config_set("maxmemory", 0)
        assert rewrite_all(chat.system.client) == 1


class TestKills:
    def test_a_rewrite_killed_at_any_step_is_done_by_the_next_one(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rewriting, "PAGE", 30)
        monkeypatch.setattr("imcore.streams.calls.repair_calls.release", lambda *_, **__: 1 / 0)  # the dead do not
        chat.create_group(GID, ["ann", *(f"user{number}" for number in range(50))])
        chat.send_many(GID, [Draft(f"user{number % 50}", f"message {number}") for number in range(100)])
        run_workers(chat)
        k, step, is_killed = chat.system.client.space.group(GID), 0, True
        while is_killed:
            # Given a process that is killed after one more step
            recall_secrets(chat, 1)
            before, step = followers(chat), step + 1
            dying = Dying(chat.system.client.driver, partitions=2)
            dying.space  # noqa: B018 (it is asked for now, not in the rewrite)
            dying.left = step
            try:
                rewrite(dying, GID)
                is_killed = False
            except (KilledError, ZeroDivisionError):
                pass
            # Then nothing has changed, or all is done
            assert followers(chat) == before == offsets(chat)
            run_workers(chat)
            assert list(check(chat.system)) == []
            # And the next one does the rest
            holder = chat.system.client.query("HGET", k.group_locks, GID)
            if holder:
                token = holder.decode().split()[0]
                chat.system.client.execute_once("HSET", k.group_locks, GID, f"{token} 1 5000")
            rewrite_all(chat.system.client)
            assert not has_secret(chat)
        assert step > 6

    def test_a_worker_that_is_killed_leaves_it_to_the_next_one(self, chat: Chat, settings: Settings) -> None:
        # Given processes that are killed as they rewrite
        chat.create_group(GID, ["ann", *(f"user{number}" for number in range(300))])
        chat.send_many(GID, [Draft(f"user{number % 300}", "x" * 2000) for number in range(5_000)])
        recall_secrets(chat)
        k, killed = chat.system.client.space.group(GID), 0
        code = (
            "from imcore import Chat; from imcore.repair import rewriting; rewriting.PAGE = 5; "
            "rewriting.rewrite_all(Chat.connect().system.client)"
        )
        for _ in range(3):
            with running(code, settings) as process:
                wait_until(lambda: chat.system.client.query("XLEN", k.shadow) > 20 or not process.runs)
                killed += process.end(signal.SIGKILL) == -signal.SIGKILL
            assert has_secret(chat)
            assert followers(chat) == offsets(chat)
            wait_until(lambda: chat.system.client.time_ms("x") > _end_of_lock(chat))
        assert killed == 3

        # Then the next one ends it
        assert rewrite_all(chat.system.client) == 1
        assert not has_secret(chat)
        assert chat.system.client.query("EXISTS", k.shadow) == 0
        run_workers(chat)
        assert list(check(chat.system)) == []


def _end_of_lock(chat: Chat) -> int:
    holder = chat.system.client.query("HGET", chat.system.client.space.group(GID).group_locks, GID)
    return int(holder.split()[1]) if holder else 0


class TestBounds:
    def test_a_text_leaves_within_a_minute_though_nobody_trims(self, chat: Chat, settings: Settings) -> None:
        # Given the worker as it is, with a clock that is faster
        chat.create_group(GID, ["ann", "bob"])
        recall_secrets(chat)
        code = (
            "from imcore.repair import rewriting; rewriting.WAIT_MS //= 30; rewriting.LOOK_EVERY_S /= 30; "
            "from imcore.workers.__main__ import main; main(['persist'])"
        )
        began = time.monotonic()
        with running(code, settings):
            wait_until(lambda: not has_secret(chat), timeout_s=20)
        assert time.monotonic() - began > 0.5  # others could have joined

    @pytest.mark.parametrize(("members", "messages", "size"), [(5_000, 300, 10), (10, 4_000, 200), (10, 60, 60_000)])
    def test_no_step_is_larger_in_a_larger_group(self, chat: Chat, members: int, messages: int, size: int) -> None:
        # Given a large group
        chat.create_group(GID, ["ann", *(f"user{number}" for number in range(members))])
        recall_secrets(chat)
        for start in range(0, messages, 100):
            drafts = [Draft("user1", "x" * size) for _ in range(min(100, messages - start))]
            chat.send_many(GID, drafts)
        driver: Any = chat.system.client.driver
        steps: list[tuple[int, int]] = []

        def counted() -> None:
            stats = driver.info("commandstats")
            inner = sum(each["calls"] for name, each in stats.items() if "fcall" not in name)
            steps.append((inner, stats["cmdstat_fcall"]["usec"]))
            driver.config_resetstat()

        # When it is rewritten
        driver.config_resetstat()
        assert rewrite(chat.system.client, GID, on_step=counted)

        # Then each step runs few commands, and there are as many as it takes
        assert max(commands for commands, _ in steps) < MOST_COMMANDS
        assert len(steps) > members / rewriting.PAGE + messages / rewriting.PAGE + messages * size / 2**20 - 2
        assert sorted(usec for _, usec in steps)[len(steps) // 2] < 10_000
        assert not has_secret(chat)

    def test_a_group_with_a_recall_every_moment_is_rewritten_once_in_a_while(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rewriting, "LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(rewriting, "WAIT_MS", 400)
        chat.create_group(GID, ["ann", "bob"])
        worker, done, began = Rewriting(chat.system.client), 0, time.monotonic()
        while time.monotonic() - began < 2:
            recall_secrets(chat, 1)
            done += worker.look()
        assert 2 <= done <= 5

    def test_a_rewrite_on_a_cluster(self, cluster: str, settings: Settings) -> None:
        with Chat.connect(settings=replace(settings, redis_url=cluster, partitions=None)) as chat:
            chat.create_group(GID, ["ann", "bob"])
            recall_secrets(chat)
            assert rewrite_all(chat.system.client) == 1
            assert not has_secret(chat)
