"""Throw-away servers, with workers and sessions as real processes on them: for `im demo` and `im bench`."""

import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from imcore.chat import Chat
from imcore.cli.commands.worker import command_of, environment_of
from imcore.embedded.server import EmbeddedServer
from imcore.errors import ImError
from imcore.process import Programs
from imcore.settings import Settings
from imcore.util.deadlines import attempts

READY_S = 30
_POLL_S = 0.002
_LAST_LINES = 30

OnLine = Callable[[str, str], None]
"""Called with a name and a line for each line that the process of that name writes."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Servers that nobody else uses."""

    settings: Settings

    def chat(self) -> Chat:
        """Return a Chat with connections of its own."""
        return Chat.connect(settings=self.settings)

    def environment(self) -> dict[str, str]:
        """Return the environment of processes on these servers, without the user's own settings."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IM_")}
        return environment_of(self.settings, environment)

    @contextmanager
    def workers(self, *names: str, on_line: OnLine | None = None) -> "Iterator[Processes]":
        """Start workers, which may not be ready yet in the `with`, and end them after it."""
        with Processes(self.environment(), "the worker", on_line) as workers:
            for name in names:
                workers.start(name, command_of(name), workers.environment)
            yield workers


class Processes(Programs):
    """Programs that share an environment. `what` says in errors what each of them is: "the worker"."""

    def __init__(self, environment: dict[str, str], what: str, on_line: OnLine | None = None) -> None:
        """Hand each line that a process writes to `on_line`. Without it, errors quote the last lines."""
        super().__init__(on_line or self._keep)
        self.environment = environment
        self._what = what
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    def watch(self) -> None:
        """Read what the processes wrote. Raise ImError if one has ended by itself."""
        self.relay(0)
        for name, code in self.ended().items():
            raise ImError(f"{self._what} {name} ended by itself (exit code {code}){self._quoted(': ')}")

    def wait(
        self, condition: Callable[[], bool], what: str, *, timeout_s: float = READY_S, pause_s: float = _POLL_S
    ) -> None:
        """Wait until a condition holds. Raise ImError after `timeout_s`, or if a process ends meanwhile."""
        for _ in attempts(timeout_s, longest_pause_s=pause_s):
            if condition():
                return
            self.watch()
        raise ImError(f"after {timeout_s:g} s still not so: {what}{self._quoted('. The last lines: ')}")

    def _keep(self, name: str, line: str) -> None:
        self._last_lines.append(f"{name}: {line}")

    def _quoted(self, before: str) -> str:
        return before + " / ".join(self._last_lines) if self._last_lines else ""


def im_command(*arguments: str) -> list[str]:
    """Return the command line of `im`. With `-P`, a folder `imcore` in the current one is not imported."""
    return [sys.executable, "-P", "-m", "imcore.cli.main", *arguments]


@contextmanager
def open_sandbox(prefix: str, redis_url: str | None = None) -> Iterator[Sandbox]:
    """Start an embedded server in a temporary folder, unless a URL is given. The database is a SQLite file there.

    All settings but the URL are the defaults: the user's environment is not read.
    """
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, ExitStack() as things:
        settings = Settings.from_env({}, redis_url=redis_url, data_dir=str(Path(folder, "data")))
        if not redis_url:
            things.enter_context(EmbeddedServer(settings.data_dir))
        yield Sandbox(settings)
