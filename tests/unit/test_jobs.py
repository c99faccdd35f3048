"""The worker `jobs` and the signals that come at any moment of its start."""

import signal

import fakeredis

from imcore.process import WorkerSignals
from imcore.workers import jobs


def test_a_signal_before_rq_handles_signals_is_not_forgotten() -> None:
    with WorkerSignals() as signals:
        # Given a job, and a worker that is about to work
        connection = fakeredis.FakeRedis()
        queue = jobs.queue(connection)
        job = queue.enqueue(jobs.TRIM)
        worker = jobs.JobsWorker(connection, signals, 0)

        # When it is asked to end before rq has put its handlers in place
        signal.raise_signal(signal.SIGTERM)
        worker.work(burst=True, logging_level=None)

    # Then it begins nothing, and signs off
    assert queue.job_ids == [job.id]
    assert not jobs.JobsWorker.all(connection)


def test_a_signal_while_rq_waits_ends_the_wait() -> None:
    with WorkerSignals() as signals:
        connection = fakeredis.FakeRedis()
        worker = jobs.JobsWorker(connection, signals, 0)

        # Given a signal at the first moment at which rq handles it
        def ask_to_end(burst: bool) -> None:
            signal.raise_signal(signal.SIGTERM)

        worker.check_for_suspension = ask_to_end  # type: ignore[method-assign]
        worker.work(logging_level=None)

        # Then the worker knows why it ended
        assert signals.stopping
