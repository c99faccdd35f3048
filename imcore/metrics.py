"""Metrics: a process counts in plain numbers, whether Prometheus asks for them or not.

    code --add, set, observe--> numbers in memory <--GET /metrics-- Prometheus

Only `Registry.exposition` loads prometheus-client, which is an extra. It reads numbers and does no I/O on Redis or SQL.
The numbers begin at 0 with the process. Any thread may count and read
them; a Gauge has one writer.
"""

import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from imcore.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

Labels = tuple[str, ...]
"""The values of a metric's labels, in their order. The program makes them, never a user: each makes a series."""

STALE_S = 30.0
"""A backlog that was read longer ago is left out: no figure is better than an old one."""

QUICK_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Buckets for what the program does, in seconds. A msgid counts milliseconds."""
HUMAN_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0, 604_800.0)
"""Buckets for what people do, in seconds."""


class CounterMetric:
    """A number that only grows, for each value of its labels."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str] = (), *, read: Callable[[], float] | None = None
    ) -> None:
        """The exposition adds `_total` to the name. With `read`, that gives the number, as that of a Gauge does."""
        self._name, self._text, self._labels = name, text, labels
        self._values: dict[Labels, float] = {} if labels else {(): 0}
        self._read = read
        self._lock = Lock()

    def add(self, amount: float = 1, *labels: str) -> None:
        """Add to the number with these values of the labels."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def values(self) -> Mapping[Labels, float]:
        return {(): self._read()} if self._read else self._values.copy()

    def metric(self) -> "Metric":
        from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 (only where somebody asks)

        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self.values().items():
            family.add_metric(labels, value)
        return family


class Gauge:
    """A number that rises and falls, for each value of its labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        read: Callable[[], Mapping[Labels, float]] | None = None,
    ) -> None:
        """With `read`, that gives the numbers whenever somebody asks: in any thread, and without I/O."""
        self._name, self._text, self._labels = name, text, labels
        self._values: dict[Labels, float] = {} if labels else {(): 0}
        self._read = read

    def set(self, value: float, *labels: str) -> None:
        self._values[labels] = value

    def add(self, amount: float, *labels: str) -> None:
        """Add to the number with these values of the labels, or take from it."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def values(self) -> Mapping[Labels, float]:
        return self._read() if self._read else self._values.copy()

    def metric(self) -> "Metric":
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 (as above)

        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self.values().items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """Counts values by bucket, and adds them up."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        """The buckets are upper bounds, in ascending order."""
        self._name, self._text, self._bounds = name, text, buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, value: float, count: int = 1) -> None:
        """Note a value that came `count` times. One below 0 counts as 0: two clocks may differ."""
        value = max(value, 0.0)
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += count
            self._sum += value * count

    def cumulative(self) -> list[tuple[float, int]]:
        """Return how many values were at most as high as each bucket's bound; the last bound is infinite."""
        total = 0
        pairs = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts.copy(), strict=True):
            total += count
            pairs.append((bound, total))
        return pairs

    def metric(self) -> "Metric":
        from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 (as above)

        buckets: list[tuple[str, float]] = [(_bound(bound), count) for bound, count in self.cumulative()]
        return HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


_BEGAN = time.time()


def _process_metrics() -> tuple[CounterMetric | Gauge, ...]:
    """Return metrics of the process, by their usual names. prometheus-client's own count its open files one by one,
    which blocks a loop with 10,000 sockets.
    """
    return (
        CounterMetric("process_cpu_seconds", "CPU time, user and system.", read=time.process_time),
        Gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.", read=lambda: {(): _BEGAN}),
        Gauge("process_resident_memory_bytes", "Memory in use.", read=_resident_bytes),
        Gauge("process_open_fds", "Open file descriptors.", read=_open_files),
        Gauge("process_max_fds", "Limit of open file descriptors.", read=_most_files),
    )


def _resident_bytes() -> Mapping[Labels, float]:
    try:
        with open("/proc/self/statm", "rb") as file:
            return {(): int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    except OSError:  # this system has none
        return {}


def _open_files() -> Mapping[Labels, float]:
    """Return their number where the system counts them (Linux 6.2 and later)."""
    try:
        number = os.stat("/proc/self/fd").st_size
    except OSError:
        return {}
    return {(): number} if number else {}


def _most_files() -> Mapping[Labels, float]:
    most = os.sysconf("SC_OPEN_MAX")
    return {(): most} if most > 0 else {}


class Registry:
    """The metrics of one process, and their exposition."""

    def __init__(self) -> None:
        self._metrics: list[CounterMetric | Gauge | Histogram] = []
        self._collectors: CollectorRegistry | None = None

    def add(self, *metrics: CounterMetric | Gauge | Histogram) -> None:
        self._metrics += metrics

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics in the form of prometheus-client, which calls this for each exposition."""
        return (metric.metric() for metric in self._metrics)

    def collectors(self) -> "CollectorRegistry":
        """Return a registry of prometheus-client with these metrics and those of the process: CPU, memory, descriptors.

        Raise ConfigurationError if prometheus-client is not installed.
        """
        if self._collectors is None:
            try:
                from prometheus_client import CollectorRegistry  # noqa: PLC0415 (as above)
            except ImportError as error:
                raise ConfigurationError(
                    "metrics need prometheus-client: pip install 'imcore[metrics]', or unset IM_METRICS_PORT"
                ) from error
            self._collectors = CollectorRegistry(auto_describe=False)
            self._collectors.register(self)
            process = Registry()
            process.add(*_process_metrics())
            self._collectors.register(process)
        return self._collectors

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """Return the content type and the body of an answer to `GET /metrics` with this `Accept` header.

        From any thread. It takes about a millisecond. Raise ConfigurationError as `collectors` does.
        """
        collectors = self.collectors()
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 (as above)

        encode, content_type = choose_encoder(accept)
        return content_type, encode(collectors)


Backlogs = Mapping[Labels, tuple[int, float]]
"""By kind of worker and partition: the entries that are not done, and the age of the oldest one in seconds. The
partition of jobs is ''."""


class WorkerMetrics:
    """The metrics of one worker, with all its lanes."""

    def __init__(self, worker: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.worker = worker
        self._clock = clock
        self._backlog: tuple[float, Backlogs, int | None] | None = None
        """When they were read, the backlogs, and the number of dead letters. Replaced as a whole."""
        one, each = ("worker",), ("worker", "partition")
        self.entries = CounterMetric("imcore_entries_handled", "Journal entries handled, by kind.", ("worker", "kind"))
        self.batches = CounterMetric("imcore_batches", "Steps that handled any entry.", one)
        self.failures = CounterMetric("imcore_entry_failures", "Failures of single entries, which are retried.", one)
        self.buried = CounterMetric("imcore_entries_buried", "Entries that became dead letters.", one)
        self.errors = CounterMetric("imcore_worker_errors", "Steps that failed and are repeated.", ("worker", "error"))
        self.messages = CounterMetric("imcore_messages_stored", "Messages written to SQL; after a crash some twice.")
        self.acks = CounterMetric("imcore_acks_folded", "Moves of offsets that were folded into receipts.")
        self.receipts = CounterMetric("imcore_receipts", "Receipts (one recipient, one message) in digests.")
        self.digests = CounterMetric("imcore_digests", "Digests sent to senders.")
        self.jobs = CounterMetric("imcore_jobs", "Jobs that have ended.", ("job", "outcome"))
        self.stored_s = Histogram(
            "imcore_send_to_store_seconds", "From a message's send to its commit in SQL.", QUICK_S
        )
        self.read_s = Histogram(
            "imcore_send_to_read_seconds", "From a message's send to an ack that names it.", HUMAN_S
        )
        backlog = Gauge("imcore_backlog_entries", "Journal entries that are not done.", each, read=self._entries)
        age = Gauge("imcore_backlog_age_seconds", "Age of the oldest entry that is not done.", each, read=self._ages)
        dead = Gauge("imcore_dead_letters", "Dead letters that wait for an operator.", read=self._dead_letters)
        own = {
            "persist": (self.messages, self.stored_s),
            "receipts": (self.acks, self.receipts, self.digests, self.read_s),
            "jobs": (self.jobs,),
        }
        self.registry = Registry()
        self.registry.add(self.entries, self.batches, self.failures, self.buried, self.errors)
        self.registry.add(backlog, age, dead, *own.get(worker, ()))

    def handled(self, kinds: Iterable[str]) -> None:
        """Count entries that were handled, by their kinds."""
        for kind, count in Counter(kinds).items():
            self.entries.add(count, self.worker, kind)

    def failed(self, *, buried: bool) -> None:
        """Count a failure of one entry, which may have made it a dead letter."""
        self.failures.add(1, self.worker)
        if buried:
            self.buried.add(1, self.worker)

    def stepped(self, handled: int) -> None:
        """Count a step, if it handled any entry."""
        if handled:
            self.batches.add(1, self.worker)

    def step_failed(self, error: Exception) -> None:
        self.errors.add(1, self.worker, type(error).__name__)

    def note_backlog(self, backlogs: Backlogs, dead_letters: int | None) -> None:
        """Replace what is known of the backlogs. Until the next call their ages grow by themselves. From any thread."""
        self._backlog = self._clock(), backlogs, dead_letters

    def _known(self) -> tuple[float, Backlogs, Mapping[Labels, float]]:
        """Return how long ago the backlogs were read, what they were, and the dead letters; nothing if it is stale."""
        if self._backlog is None or (elapsed_s := self._clock() - self._backlog[0]) > STALE_S:
            return 0.0, {}, {}
        _, backlogs, dead_letters = self._backlog
        return elapsed_s, backlogs, {} if dead_letters is None else {(): dead_letters}

    def _entries(self) -> Mapping[Labels, float]:
        return {labels: entries for labels, (entries, _) in self._known()[1].items()}

    def _ages(self) -> Mapping[Labels, float]:
        elapsed_s, backlogs, _ = self._known()
        return {labels: age_s + elapsed_s if entries else 0.0 for labels, (entries, age_s) in backlogs.items()}

    def _dead_letters(self) -> Mapping[Labels, float]:
        return self._known()[2]


class WebMetrics:
    """The metrics of one process of `im serve`. Only its loop's thread counts."""

    def __init__(self, ack_calls: Callable[[], float] = lambda: 0) -> None:
        """`ack_calls` returns how many calls of the gateway have sent acks."""
        self.sockets = Gauge("imcore_sockets", "WebSockets that are open.")
        self.closes = CounterMetric("imcore_sockets_closed", "WebSockets that have ended, by close code.", ("code",))
        self.calls = CounterMetric("imcore_calls", "Calls and notifications of clients, by method.", ("method",))
        self.errors = CounterMetric("imcore_call_errors", "Calls answered with an error.", ("method", "error"))
        self.messages = CounterMetric("imcore_messages_pushed", "Messages pushed, one for each socket.")
        self.receipts = CounterMetric("imcore_receipts_pushed", "Changed tallies pushed, one for each socket.")
        self.acks_received = CounterMetric("imcore_acks_received", "Acks that clients sent.")
        acks_sent = CounterMetric(
            "imcore_acks_sent", "Calls that ack at Redis: those of many clients are folded.", read=ack_calls
        )
        self.pushed_s = Histogram("imcore_send_to_push_seconds", "From a message's send to its push.", QUICK_S)
        self.registry = Registry()
        self.registry.add(
            *(self.sockets, self.closes, self.calls, self.errors, self.messages, self.receipts),
            *(self.acks_received, acks_sent, self.pushed_s),
        )
