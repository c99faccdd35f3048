"""`GET /metrics` of real workers: found by their logs, read as Prometheus reads it."""

import signal
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from imcore import Chat
from imcore.settings import Settings
from imcore.workers import jobs
from tests.helpers.deadline import wait_until
from tests.helpers.scrapes import free_port, metrics_url, scrape, sum_of
from tests.helpers.silent_proxy import SilentProxy
from tests.helpers.worker_runs import UIDS, talk
from tests.helpers.workers import run_bursts, start_worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=50, partitions=4, metrics_port=free_port())


def sample(url: str, name: str, *labels: str) -> float | None:
    return sum_of(scrape(url), name, *labels)


def test_workers_that_share_the_setting_serve_what_they_did_on_ports_of_their_own(
    chat: Chat, settings: Settings
) -> None:
    # Given three workers
    with (
        start_worker(settings, "persist") as persist,
        start_worker(settings, "receipts") as receipts,
        start_worker(settings, "jobs") as trims,
    ):
        urls = [metrics_url(worker) for worker in (persist, receipts, trims)]
        assert len(set(urls)) == 3

        # When people talk, and one of twenty acks all
        talk(chat, count=300)

        # Then each says what it did
        wait_until(lambda: sample(urls[0], "imcore_messages_stored_total") == 300)
        assert sample(urls[0], "imcore_send_to_store_seconds_count") == 300
        wait_until(lambda: sample(urls[1], "imcore_acks_folded_total") == 1)
        assert sample(urls[1], "imcore_receipts_total") == 300 - 300 / len(UIDS)
        assert sample(urls[1], "imcore_send_to_read_seconds_count") == 1
        wait_until(lambda: sample(urls[2], "imcore_jobs_total", 'job="trim"', 'outcome="done"') == 1)

        # And all end in order
        assert [worker.end() for worker in (persist, receipts, trims)] == [0, 0, 0]


def test_the_backlog_of_a_worker_that_is_gone_is_shown_by_the_others_and_grows_older(
    chat: Chat, settings: Settings
) -> None:
    # Given a persist that has stopped, and a worker of another kind
    run_bursts(replace(settings, metrics_port=None), "persist")
    talk(chat, count=10)
    with start_worker(settings, "receipts") as receipts:
        url = metrics_url(receipts)

        # Then it shows what waits, and for how long
        def behind() -> float | None:
            return sample(url, "imcore_backlog_entries", 'worker="persist"')

        def age() -> float:
            found = scrape(url)
            return max(
                value for key, value in found.items() if key.startswith("imcore_backlog_age") and "persist" in key
            )

        entries = wait_until(behind)
        assert entries == sum(chat.system.client.query("XLEN", key) for key in chat.system.client.space.journals())
        first = age()
        wait_until(lambda: age() > first + 1)
        wait_until(lambda: sample(url, "imcore_backlog_entries", 'worker="receipts"') == 0)


def test_dead_letters_and_errors_are_shown(chat: Chat, settings: Settings) -> None:
    chat.system.client.driver.xadd(chat.system.client.space.journal(0), {"kind": "nonsense"})
    with start_worker(replace(settings, max_deliveries=1), "persist") as persist:
        url = metrics_url(persist)
        wait_until(lambda: sample(url, "imcore_entries_buried_total") == 1)
        wait_until(lambda: sample(url, "imcore_dead_letters") == 1)


def test_a_scrape_is_answered_while_redis_is_silent(settings: Settings, tmp_path: Path) -> None:
    with (
        SilentProxy(tmp_path / "silent.sock", settings.redis_url) as proxy,
        start_worker(replace(settings, redis_url=proxy.url), "persist") as persist,
    ):
        url = metrics_url(persist)
        wait_until(lambda: sample(url, "imcore_dead_letters") == 0)
        proxy.fall_silent()
        assert scrape(url)["process_cpu_seconds_total"] > 0
        assert persist.end() == 0


def test_a_failed_job_is_counted(settings: Settings) -> None:
    with closing(redis.Redis.from_url(settings.redis_url)) as connection:
        jobs.queue(connection).enqueue("imcore.workers.jobs.no_such_job")
        with start_worker(settings, "jobs") as worker:
            url = metrics_url(worker)
            wait_until(lambda: sample(url, "imcore_jobs_total", 'job="other"', 'outcome="failed"') == 1)
            wait_until(lambda: sample(url, "imcore_backlog_entries", 'worker="jobs"') == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_scraper_that_stops_reading_holds_up_no_end(settings: Settings, number: signal.Signals) -> None:
    with start_worker(settings, "persist") as persist:
        _, port = metrics_url(persist).removesuffix("/metrics").rsplit(":", 1)
        with socket.create_connection(("127.0.0.1", int(port))) as scraper:
            scraper.sendall(b"GET /metrics HTTP/1.1\r\n")
            persist.wait_for("working as")
            assert persist.end(number) == 0


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "metrics cannot be served at 192.0.2.1"),
        ("no such host", "metrics cannot be served at no such host"),
    ],
)
def test_an_address_that_is_not_ours_is_refused_in_one_line(settings: Settings, host: str, said: str) -> None:
    with start_worker(settings, "persist", metrics_host=host) as persist:
        assert persist.wait() == 1
    [line] = persist.log.splitlines()
    assert line.startswith(f"im worker persist: {said}")
