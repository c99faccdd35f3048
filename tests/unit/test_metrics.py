"""What workers count, after known histories on fakeredis; and how Prometheus sees it."""

import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from imcore import Chat
from imcore.errors import ConfigurationError, DatabaseUnavailable, RedisUnavailable
from imcore.metrics import STALE_S, CounterMetric, Gauge, Histogram, Registry, WebMetrics, WorkerMetrics
from imcore.process import WorkerSignals
from imcore.repair.watch import Watch
from imcore.streams.journal import Journal
from imcore.workers.persist import Persist
from imcore.workers.receipts import ReceiptsWorker
from imcore.workers.runner import Retrier
from tests.helpers.persist_runs import SETTINGS
from tests.helpers.scrapes import Samples, names_of, samples_of, sum_of
from tests.helpers.workers import drain


def samples(metrics: WorkerMetrics | WebMetrics | Registry) -> Samples:
    registry = metrics if isinstance(metrics, Registry) else metrics.registry
    content_type, body = registry.exposition()
    assert content_type.startswith("text/plain")
    return samples_of(body.decode())


def persist(chat: Chat, metrics: WorkerMetrics) -> Persist:
    system = chat.system
    watch = Watch(system.client, system.database, SETTINGS)
    return Persist(system.client, system.database, replace(SETTINGS, max_deliveries=2), watch, metrics)


class TestNumbers:
    def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it(self) -> None:
        histogram = Histogram("imcore_test_seconds", "A test.", (0.1, 1.0))
        for value, count in ((0.1, 1), (0.11, 2), (1.0, 3), (5.0, 4), (-3.0, 5)):
            histogram.observe(value, count)
        registry = Registry()
        registry.add(histogram)

        found = samples(registry)

        assert found['imcore_test_seconds_bucket{le="0.1"}'] == 6
        assert found['imcore_test_seconds_bucket{le="1.0"}'] == 11
        assert found['imcore_test_seconds_bucket{le="+Inf"}'] == found["imcore_test_seconds_count"] == 15
        assert found["imcore_test_seconds_sum"] == pytest.approx(0.1 + 0.22 + 3 + 20)

    def test_counters_and_gauges_have_a_number_for_each_value_of_their_labels(self) -> None:
        counter = CounterMetric("imcore_test", "A test.", ("method", "error"))
        counter.add(1, "send", "NotMember")
        counter.add(2, "send", "NotMember")
        counter.add(1, "ack", "-32601")
        gauge, given = Gauge("imcore_level", "A test."), Gauge("imcore_given", "A test.", read=lambda: {(): 7})
        gauge.add(3)
        gauge.add(-1)
        registry = Registry()
        registry.add(counter, gauge, given)

        found = samples(registry)

        assert found['imcore_test_total{error="NotMember",method="send"}'] == 3
        assert found['imcore_test_total{error="-32601",method="ack"}'] == 1
        assert (found["imcore_level"], found["imcore_given"]) == (2, 7)
        assert counter.values()["send", "NotMember"] == 3

    def test_what_was_never_counted_is_0(self) -> None:
        found = samples(WebMetrics())
        assert (
            found["imcore_sockets"]
            == found["imcore_acks_sent_total"]
            == found["imcore_send_to_push_seconds_count"]
            == 0
        )

    def test_the_process_itself_is_among_the_figures(self) -> None:
        found = samples(Registry())
        assert found["process_cpu_seconds_total"] > 0
        assert 0 <= time.time() - found["process_start_time_seconds"] < 3600
        assert found["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if Path("/proc/self/statm").exists():
            assert 1_000_000 < found["process_resident_memory_bytes"] < 100_000_000_000

    @pytest.mark.parametrize("more", [0, 300])
    def test_open_files_are_counted_by_the_system(self, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
        with ExitStack() as files:
            for _ in range(more):
                files.enter_context(open(os.devnull, "rb"))
            known = Path("/proc/self/fd").exists() and os.stat("/proc/self/fd").st_size
            expected = len(os.listdir("/proc/self/fd")) - 1 if known else None
            monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("a scrape that grows with the sockets"))
            assert samples(Registry()).get("process_open_fds") == expected

    def test_a_scraper_may_ask_for_openmetrics(self) -> None:
        content_type, body = WorkerMetrics("persist").registry.exposition("application/openmetrics-text; version=1.0.0")
        assert content_type.startswith("application/openmetrics-text")
        assert list(openmetrics(body.decode()))

    def test_prometheus_client_is_loaded_only_for_an_exposition(self) -> None:
        code = "import sys, imcore.workers.persist; sys.exit('prometheus_client' in sys.modules)"
        environment = {"PYTHONPATH": ":".join(sys.path)}
        assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0

    def test_without_prometheus_client_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        with pytest.raises(ConfigurationError, match=r"pip install 'imcore\[metrics\]'"):
            WorkerMetrics("persist").registry.exposition()


class TestPersist:
    def test_messages_and_entries_of_each_kind_are_counted_once_they_are_stored(self, chat: Chat) -> None:
        # Given a group where two talk, one reads, and one leaves
        metrics = WorkerMetrics("persist")
        worker = persist(chat, metrics)
        chat.create_group("team", ["ann", "bob", "cy"])
        sent = [chat.send("team", f"{number}", sender_uid="ann") for number in range(5)]
        chat.ack("bob", "team", sent[-1].msgid)
        chat.remove_members("team", ["cy"])
        assert sum_of(samples(metrics), "imcore_messages_stored_total") == 0

        # When they are stored
        assert drain(worker) == 8

        # Then
        found = samples(metrics)
        assert found["imcore_messages_stored_total"] == 5
        kinds = {kind: found.get(f'imcore_entries_handled_total{{kind="{kind}",worker="persist"}}') for kind in KINDS}
        assert kinds == {"created": 1, "sent": 5, "acked": 1, "left": 1, "malformed": None}
        assert found["imcore_send_to_store_seconds_count"] == 5
        assert 0 <= found["imcore_send_to_store_seconds_sum"] < 60 * 5

    def test_the_time_until_a_message_is_stored_begins_with_its_send(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        metrics = WorkerMetrics("persist")
        worker = persist(chat, metrics)
        chat.create_group("team", ["ann"])
        chat.send("team", "hi", sender_uid="ann")
        now = time.time()
        monkeypatch.setattr("imcore.workers.persist.time.time", lambda: now + 100)

        drain(worker)

        assert samples(metrics)["imcore_send_to_store_seconds_sum"] == pytest.approx(100, abs=20)

    def test_failures_of_an_entry_are_counted_and_so_is_its_end_as_a_dead_letter(self, chat: Chat) -> None:
        # Given an entry that nobody can read
        metrics = WorkerMetrics("persist")
        worker = persist(chat, metrics)
        chat.create_group("team", ["ann"])
        chat.system.client.driver.xadd(chat.system.client.space.journal(0), {"kind": "nonsense"})

        drain(worker)

        found = samples(metrics)
        assert found['imcore_entry_failures_total{worker="persist"}'] == 2
        assert found['imcore_entries_buried_total{worker="persist"}'] == 1
        assert sum_of(found, "imcore_entries_handled_total") == 1

    def test_what_sql_did_not_take_is_not_counted_as_stored(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        metrics = WorkerMetrics("persist")
        worker = persist(chat, metrics)
        chat.create_group("team", ["ann"])
        chat.send("team", "hi", sender_uid="ann")

        def refuse(_batch: object) -> None:
            raise DatabaseUnavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(chat.system.database, "write", refuse)
            with pytest.raises(DatabaseUnavailable):
                worker.step()
        assert samples(metrics)["imcore_messages_stored_total"] == 0

        drain(worker)
        assert samples(metrics)["imcore_messages_stored_total"] == 1


KINDS = ("created", "sent", "acked", "left", "malformed")


class TestReceipts:
    def test_acks_receipts_and_digests_are_counted_as_stats_count_them(self, chat: Chat) -> None:
        # Given three messages of two senders, and two who read them all
        metrics = WorkerMetrics("receipts")
        system = chat.system
        worker = ReceiptsWorker(system.client, system.database, SETTINGS, metrics)
        chat.create_group("team", ["ann", "bob", "cy", "dan"])
        for uid in ("ann", "ann", "bob"):
            chat.send("team", "hi", sender_uid=uid)
        chat.ack("cy", "team")
        chat.ack("dan", "team")

        drain(worker)

        # Then each of two read three messages, which two senders were told
        found = samples(metrics)
        assert found["imcore_acks_folded_total"] == 2
        assert found["imcore_receipts_total"] == 6
        assert found["imcore_digests_total"] == 2
        assert found["imcore_send_to_read_seconds_count"] == 2
        assert 0 <= found["imcore_send_to_read_seconds_sum"] < 60

    def test_each_worker_shows_its_own_figures_only(self) -> None:
        names = {kind: names_of(samples(WorkerMetrics(kind))) for kind in ("persist", "receipts", "jobs")}
        assert "imcore_messages_stored_total" in names["persist"] - names["receipts"]
        assert "imcore_digests_total" in names["receipts"] - names["persist"]


class TestErrors:
    def test_a_step_that_fails_is_counted_by_its_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        metrics = WorkerMetrics("persist")
        outcomes = iter([RedisUnavailable("away"), RedisUnavailable("away"), DatabaseUnavailable("away"), None])

        def attempt() -> None:
            if error := next(outcomes):
                raise error

        with WorkerSignals() as signals:
            monkeypatch.setattr(signals, "wait", lambda _: None)
            Retrier(signals, metrics).call(attempt)

        found = samples(metrics)
        assert found['imcore_worker_errors_total{error="RedisUnavailable",worker="persist"}'] == 2
        assert found['imcore_worker_errors_total{error="DatabaseUnavailable",worker="persist"}'] == 1


class TestBacklog:
    def test_an_age_grows_between_two_readings_and_an_old_reading_is_left_out(self) -> None:
        # Given a backlog, and one that is empty
        now = 1000.0
        metrics = WorkerMetrics("receipts", clock=lambda: now)
        assert sum_of(samples(metrics), "imcore_backlog_entries") is None
        metrics.note_backlog({("persist", "0"): (3, 1.5), ("receipts", "0"): (0, 0.0)}, 2)
        # When time goes by
        now += 10
        # Then
        found = samples(metrics)
        assert found['imcore_backlog_entries{partition="0",worker="persist"}'] == 3
        assert found['imcore_backlog_age_seconds{partition="0",worker="persist"}'] == pytest.approx(11.5)
        assert found['imcore_backlog_age_seconds{partition="0",worker="receipts"}'] == 0
        assert found["imcore_dead_letters"] == 2
        # And when nobody has read it for long, nothing is said
        now += STALE_S
        assert {name for name in names_of(samples(metrics)) if "backlog" in name or "dead" in name} == set()

    def test_a_worker_without_metrics_counts_into_the_void(self, chat: Chat) -> None:
        chat.create_group("team", ["ann"])
        journal = Journal(chat.system.client, "persist", SETTINGS)
        journal.done(journal.read(block_ms=0))
        assert journal.drained()
