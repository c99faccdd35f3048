"""A worker that neither ends a step nor closes: `python -m tests.helpers.hanging_worker NAME`."""

import logging
import time
from typing import Any, NoReturn

from imcore import process
from imcore.metrics import WorkerMetrics
from imcore.settings import Settings
from imcore.workers import runner


class Hanging:
    """In place of the worker's class; it hangs."""

    def __init__(self, *_: Any) -> None:
        pass

    def step(self) -> NoReturn:
        logging.info("in a step")
        self.close()

    def drained(self) -> bool:
        return False

    def close(self) -> NoReturn:
        while True:
            time.sleep(60)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.WORKER_PATIENCE_S = 0.1
    with process.WorkerSignals() as caught:
        runner.run(Hanging, Settings.from_env(), caught, WorkerMetrics("hanging"), burst=False)
