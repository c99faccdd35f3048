"""A signal that comes while the worker `jobs` writes a line ends it all the same."""

import logging
import os
import signal
from collections.abc import Iterator

import fakeredis
import pytest
from rq.exceptions import StopRequested

from imcore.process import WorkerSignals
from imcore.workers.jobs import JobsWorker
from imcore.workers.runner import Retrier


class Killing(logging.Handler):
    """Sends this process a signal in the midst of a line, and passes over what comes of it, as logging does."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # Python runs the handler between two steps
                pass
        except Exception:
            self.handleError(record)


@pytest.fixture
def signals() -> Iterator[WorkerSignals]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield WorkerSignals()
    for number, handler in before:
        signal.signal(number, handler)


def test_a_signal_in_the_midst_of_a_line_ends_the_worker_before_it_waits(
    signals: WorkerSignals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    retrier = Retrier(signals)
    worker = JobsWorker(fakeredis.FakeRedis(), signals, 0, retrier=retrier)
    worker._install_signal_handlers()
    monkeypatch.setattr(retrier, "_has_warned", True)  # so that it says that it goes on
    log, killing = logging.getLogger("imcore.workers.runner"), Killing()
    log.addHandler(killing)
    try:
        with caplog.at_level(logging.INFO, logger=log.name), pytest.raises(StopRequested):
            worker.heartbeat()
    finally:
        log.removeHandler(killing)
    assert signals.stopping
