"""Worker and other Python processes for the tests: started, watched and ended by process id."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.helpers.deadline import wait_until

END_S = 30


class Process:
    """A process that is ended with the block that it was started for."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; return the exit code."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        return self._process.wait(END_S)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait(END_S)


class PythonProcess(Process):
    """One `python -m MODULE NAME`, where the name may be a path. What it writes to stderr is in `log`."""

    def __init__(self, folder: Path, module: str, name: str, *arguments: str, **settings: str | int) -> None:
        """Settings are those of the environment: `redis_url` is IM_REDIS_URL. Its data directory is the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.log")))
        self._log = folder / f"{number}-{Path(name).stem}.log"
        environment = {f"IM_{name.upper()}": str(value) for name, value in {"data_dir": folder, **settings}.items()}
        with self._log.open("wb") as log:
            super().__init__(
                subprocess.Popen(
                    [sys.executable, "-m", module, name, *arguments],
                    env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(kind, error, at)
        if error and self.log:
            error.add_note(f"{self._log.name}:\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def warnings(self) -> list[str]:
        """The lines of its warnings."""
        return [line for line in self.log.splitlines() if " WARNING " in line]

    def wait_for(self, words: str) -> None:
        """Wait until its log has these words."""
        wait_until(lambda: words in self.log or not self.runs, timeout_s=END_S)
        assert words in self.log, self.log


class WorkerProcess(PythonProcess):
    """One `python -m imcore.workers NAME`."""

    def __init__(self, folder: Path, name: str, *arguments: str, **settings: str | int) -> None:
        super().__init__(folder, "imcore.workers", name, *arguments, **settings)
