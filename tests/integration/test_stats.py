"""`im stats` on real servers."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.job import JobStatus

from imcore.admin.stats import JobStats, stats
from imcore.chat import Chat
from imcore.settings import Settings
from imcore.streams import consumers
from imcore.workers import jobs
from tests.helpers.deadline import wait_until
from tests.helpers.workers import run_bursts, start_worker


@pytest.fixture(params=["valkey", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


def test_stats_count_streams_and_coalesced_receipts(chat: Chat) -> None:
    # Given a group of 50 with 20 messages, which ten members acked in two steps
    uids = [f"user{number}" for number in range(50)]
    chat.create_group("team", uids)
    for half in range(2):
        for number in range(10):
            last = chat.send("team", "x" * 1000, sender_uid=uids[number])
        for uid in uids[10:20]:
            chat.ack(uid, "team", last.msgid)
        run_bursts(chat.system.settings, "receipts")
        assert stats(chat.system).storm.acks == 10 * (half + 1)

    # Then
    counts = stats(chat.system)
    assert (counts.storm.receipts, counts.storm.digests, counts.storm.receipts_per_digest) == (200, 20, 10.0)
    groups, journals = counts.streams
    assert (groups.kind, groups.streams, groups.entries) == ("groups", 1, 20)
    assert 20_000 < (groups.bytes or 0) < 60_000
    assert (journals.kind, journals.streams, journals.entries) == ("journals", 8, counts.journal)
    assert (journals.bytes or 0) > 20 * 50


def test_stats_estimate_the_bytes_of_many_streams_from_a_sample(valkey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chat.connect(valkey) as chat:
        for number in range(20):
            chat.create_group(f"g{number}", ["ann"])
            for _ in range(20):
                chat.send(f"g{number}", "x" * 500, sender_uid="ann")
        all_of_them = stats(chat.system).streams[0].bytes
        monkeypatch.setattr("imcore.admin.stats._WEIGHED", 5)
        estimate = stats(chat.system).streams[0].bytes
        assert all_of_them
        assert estimate == pytest.approx(all_of_them, rel=0.1)


def test_stats_count_jobs(valkey: str, tmp_path: Path) -> None:
    settings = Settings.from_env({}, redis_url=valkey, jobs_redis_url=f"{valkey}?db=3", data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, closing(redis.Redis.from_url(settings.jobs_redis_url)) as client:
        chat.create_group("team")
        assert stats(chat.system).jobs == JobStats(0, 0, 0)

        # Given a job that has failed, and two that wait
        queue = jobs.queue(client)
        failing = queue.enqueue("imcore.workers.jobs.no_such_job")
        with start_worker(settings, "jobs", "--burst") as w:
            assert w.wait() == 0, w.log
        assert failing.get_status(refresh=True) == JobStatus.FAILED
        queue.enqueue(jobs.TRIM)
        queue.enqueue(jobs.TRIM)
        before = dump(client)

        # Then they are counted, and nothing is changed
        assert stats(chat.system).jobs == JobStats(queued=2, running=0, failed=1)
        assert dump(client) == before

    # And where nobody answers there is nothing to count
    with Chat.connect(settings=replace(settings, jobs_redis_url="redis://127.0.0.1:1")) as chat:
        assert stats(chat.system).jobs is None


def test_stats_of_a_cluster_have_no_jobs(cluster: str) -> None:
    with Chat.connect(settings=Settings.from_env({}, redis_url=cluster)) as chat:
        chat.create_group("team")
        assert stats(chat.system).jobs is None


def dump(client: Any) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.keys("rq:*") if not key.startswith(b"rq:worker")}


def test_stats_of_an_empty_system_are_zeros(valkey: str, tmp_path: Path) -> None:
    with Chat.connect(settings=Settings.from_env({}, redis_url=valkey, data_dir=str(tmp_path))) as chat:
        chat.system.client.upgrade()
        counts = stats(chat.system)
    assert (counts.groups, [each.bytes for each in counts.streams]) == (0, [0, 0])


# The backlog of workers.


def journal_of(chat: Chat, entries: int) -> str:
    """A journal of `entries` entries; the worker persist has handled the first one."""
    chat.system.client.upgrade()
    journal = chat.system.client.space.journal(0)
    ids = [chat.system.client.execute_once("XADD", journal, "*", "kind", "test") for _ in range(entries)]
    chat.system.client.execute_once("XGROUP CREATE", journal, "persist", ids[0], "ENTRIESREAD", 1)
    return journal


def behind(chat: Chat) -> tuple[int, int]:
    [worker] = [worker for worker in stats(chat.system).workers if worker.worker == "persist"]
    return worker.backlog, worker.lag_ms


@pytest.mark.parametrize("said_to_be_read", [1, 3, 50, 1000])
def test_a_backlog_is_exact_despite_a_wrong_lag_of_the_server(chat: Chat, said_to_be_read: int) -> None:
    # Given a worker that has handled all but some, and a server that has lost count, as Redis 7.0 after a failover
    journal = journal_of(chat, 50)
    for left in (7, 0):
        last = chat.system.client.query("XREVRANGE", journal, "+", "-", "COUNT", left + 1)[-1][0]
        chat.system.client.execute_once("XGROUP SETID", journal, "persist", last, "ENTRIESREAD", said_to_be_read)
        # Then
        assert behind(chat)[0] == left
    assert behind(chat) == (0, 0)


def test_a_large_backlog_is_not_read_whole(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given more entries than are counted
    monkeypatch.setattr(consumers, "PAGE", 10)
    monkeypatch.setattr(consumers, "MOST_COUNTED", 20)
    journal = journal_of(chat, 101)
    read: list[int] = []
    ask = chat.system.client.query_many

    def counting(commands: Sequence[tuple[str | int, ...]], **options: Any) -> list[Any]:
        answers = ask(commands, **options)
        read.extend(len(page) for (name, *_), page in zip(commands, answers, strict=True) if name == "XRANGE")
        return answers

    monkeypatch.setattr(chat.system.client, "query_many", counting)
    # Then the backlog is the server's figure if that is possible, else the length of the journal
    for said_to_be_read, backlog in ((1, 100), (61, 40), (85, 101), (5000, 101)):
        first = chat.system.client.query("XRANGE", journal, "-", "+")[0][0]
        chat.system.client.execute_once("XGROUP SETID", journal, "persist", first, "ENTRIESREAD", said_to_be_read)
        read.clear()
        assert behind(chat)[0] == backlog
        assert read == [10, 10]


def test_the_age_of_entries_is_by_the_clock_of_the_server(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine whose clock is a day ahead of the server's, or behind it
    journal_of(chat, 3)
    for days in (1, -1):
        with monkeypatch.context() as patch:
            now_ns = time.time_ns()
            patch.setattr(time, "time_ns", lambda now_ns=now_ns, days=days: now_ns + days * 86_400 * 10**9)
            backlog, lag_ms = behind(chat)
        assert backlog == 2
        assert 0 <= lag_ms < 60_000
    wait_until(lambda: behind(chat)[1] >= 20)
