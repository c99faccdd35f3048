"""Serves a worker's metrics, and reads for them how far the workers are behind, in threads of its own.

A scrape reads numbers in memory. Its answer does not depend on Redis or SQL, nor on the step that the worker is in.
"""

import errno
import logging
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self

from imcore.errors import ConfigurationError, ImError
from imcore.metrics import Backlogs, WorkerMetrics
from imcore.process import signals_blocked
from imcore.settings import Settings

if TYPE_CHECKING:
    from imcore.streams.client import RedisClient

log = logging.getLogger(__name__)

REFRESH_S = 5.0
"""The backlogs are read this often."""

_MOST_COUNTED = 100
"""The entries of one journal that are counted for one kind of worker: above it the server's figure is good enough."""

_MOST_PORTS = 100
_END_S = 1.0


class Monitor:
    """`GET /metrics` on the first free port from IM_METRICS_PORT on, while this is entered; without it nothing.

    Several workers may share the setting. Raise ConfigurationError if no port can be used, or prometheus-client is
    missing.
    """

    def __init__(self, settings: Settings, metrics: WorkerMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._server: Any = None
        self._reader = Thread(target=self._read_until_stopped, name="backlogs", daemon=True)
        self._stopping = Event()

    def __enter__(self) -> Self:
        if self._settings.metrics_port is not None:
            with signals_blocked():
                self._server = self._listen(self._settings.metrics_port)
                self._reader.start()
            host, port = self._server.server_address[:2]
            log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._reader.join(_END_S)  # a server that hangs holds up nobody

    def _listen(self, first: int) -> Any:
        collectors = self._metrics.registry.collectors()
        from prometheus_client import start_http_server  # noqa: PLC0415 (only where metrics are asked for)

        host = self._settings.metrics_host
        for port in range(first, min(first + _MOST_PORTS, 65_536)):
            try:
                return start_http_server(port, host, collectors)[0]
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ConfigurationError(
                        f"metrics cannot be served at {host} port {port}: {error.strerror or error}; "
                        "see IM_METRICS_HOST and IM_METRICS_PORT"
                    ) from error
        raise ConfigurationError(f"IM_METRICS_PORT: at {host} the ports from {first} to {port} are in use")

    def _read_until_stopped(self) -> None:
        client: RedisClient | None = None
        while not self._stopping.is_set():
            try:
                if self._metrics.worker == "jobs":
                    self._metrics.note_backlog(*_of_jobs(self._settings))
                else:
                    client = client or _connected(self._settings)
                    self._metrics.note_backlog(*_of_journals(client))
            except ImError:  # the figures become old, and are left out
                _close(client)
                client = None
            self._stopping.wait(REFRESH_S)
        _close(client)


def _connected(settings: Settings) -> "RedisClient":
    from imcore.streams.client import RedisClient  # noqa: PLC0415 (as above)

    return RedisClient.connect(settings)


def _of_jobs(settings: Settings) -> tuple[Backlogs, None]:
    """Return the backlog of the worker `jobs`."""
    from imcore.streams.job_queue import job_queue  # noqa: PLC0415 (as above)

    queue = job_queue(settings)
    return {("jobs", ""): (queue.queued, queue.waiting_ms / 1000)}, None


def _of_journals(client: "RedisClient") -> tuple[Backlogs, int]:
    """Return the backlogs of all kinds of worker on the journals, and the number of dead letters."""
    from imcore.streams.consumers import partition_stats  # noqa: PLC0415 (as above)

    space = client.space
    dead = client.query_many([("XLEN", space.dead_letters(p)) for p in range(space.partitions)])
    return {
        (each.worker, str(partition)): (each.backlog, each.lag_ms / 1000)
        for partition, each in partition_stats(client, _MOST_COUNTED)
    }, sum(dead)


def _close(client: "RedisClient | None") -> None:
    if client:
        client.close()
