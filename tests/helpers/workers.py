"""Workers that run inside the test's process, and bursts of worker processes."""

from collections.abc import Callable, Sequence
from dataclasses import fields

from imcore import Chat
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.workers.persist import Persist
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.persist_runs import new_persist
from tests.helpers.processes import WorkerProcess

Worker = Persist | ReceiptsWorker
Maker = Callable[[RedisClient, Database, Settings], Worker]
BOTH: Sequence[Maker] = (new_persist, ReceiptsWorker)

_MOST_STEPS = 10_000
_DEFAULTS = Settings.from_env({}, data_dir="/nowhere")


def drain(worker: Worker) -> int:
    """Step until nothing is left; return how many entries the worker handled. The last step waits `block_ms`."""
    handled = 0
    for _ in range(_MOST_STEPS):
        count = worker.step()
        handled += count
        if not count and worker.drained():
            return handled
    raise AssertionError(f"{worker} does not come to an end")


def run_workers(chat: Chat, makers: Sequence[Maker] = BOTH) -> None:
    """Let a new worker of each kind handle everything that is in the journals now."""
    for make in makers:
        worker = make(chat.system.client, chat.system.database, chat.system.settings)
        steps = 0
        while not worker.drained():
            worker.step()
            steps += 1
            assert steps < _MOST_STEPS, f"{worker} does not come to an end"
        worker.close()


def persist(chat: Chat, steps: int = _MOST_STEPS) -> None:
    """Let a new `persist` take this many steps, or all until one handles nothing."""
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    while steps and worker.step():
        steps -= 1
    worker.close()


def store(chat: Chat) -> None:
    """Let `persist` store everything in SQL, which need not have tables yet."""
    chat.system.database.upgrade()
    run_workers(chat, [new_persist])


def deliver_receipts(chat: Chat) -> None:
    """Let `receipts` deliver all receipts."""
    run_workers(chat, [ReceiptsWorker])


def start_worker(settings: Settings, name: str = "persist", *arguments: str, **others: str | int) -> WorkerProcess:
    """Start a worker process with the settings of a test; `others` replace some."""
    given = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name != "data_dir" and getattr(settings, field.name) != getattr(_DEFAULTS, field.name)
    }
    return WorkerProcess(settings.data_dir / "processes", name, *arguments, **{**given, **others})


def run_bursts(settings: Settings, *names: str) -> None:
    """Run a process of each of these workers until it has handled everything."""
    for name in names:
        with start_worker(settings, name, "--burst") as burst:
            assert burst.wait() == 0, burst.log
