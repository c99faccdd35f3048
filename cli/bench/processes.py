"""The workers, as real processes, and what a benchmark waits for them to do."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from imcore.chat import Chat
from imcore.cli import worker_command
from imcore.cli.bench.stack import Stack
from imcore.errors import ImError
from imcore.process import Programs
from imcore.streams import keys

READY_S = 30
_PAUSE_S = 0.002
_LINES = 30
_PAGE = 100_000


class Workers:
    """Workers that run. `look_after` passes over what they say, and raises ImError if one of them has ended."""

    def __init__(self, programs: Programs, said: deque[str]) -> None:
        self._programs = programs
        self._said = said

    def look_after(self) -> None:
        """Take what they wrote, without waiting."""
        self._programs.relay(0)
        for name, code in self._programs.ended().items():
            raise ImError(f"the worker {name} ended by itself (exit code {code}): {' / '.join(self._said)}")

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = READY_S) -> None:
        """Wait until a condition holds. Raise ImError after `timeout_s`, or if a worker ends meanwhile."""
        give_up = time.monotonic() + timeout_s
        while not condition():
            self.look_after()
            if time.monotonic() > give_up:
                raise ImError(f"after {timeout_s:g} s still not so: {what}. The workers said: {' / '.join(self._said)}")
            time.sleep(_PAUSE_S)


@contextmanager
def running_workers(stack: Stack, *names: str, arguments: tuple[str, ...] = ()) -> Iterator[Workers]:
    """Run workers on a stack until the end of the `with`."""
    said: deque[str] = deque(maxlen=_LINES)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IM_")}
    environment = worker_command.environment_of(stack.settings, environment)
    environment["IM_RECEIPT_WINDOW_MS"] = str(stack.settings.receipt_window_ms)
    with Programs(lambda name, line: said.append(f"{name}: {line}")) as programs, stack.chat() as chat:
        for name in names:
            programs.start(name, worker_command.command_of(name, *arguments), environment)
        workers = Workers(programs, said)
        workers.wait(lambda: all(_is_there(chat, name) for name in names), f"the workers {', '.join(names)} are ready")
        yield workers


def _is_there(chat: Chat, name: str) -> bool:
    return bool(chat.system.client.query("EXISTS", keys.lease(name, 1)))


def backlog(chat: Chat, kind: str) -> int:
    """Return how many journal entries a kind of worker has not done; 0 too where it has not begun."""
    waiting = 0
    for journal in chat.system.client.space.journals():
        if chat.system.client.query("EXISTS", journal):
            infos = chat.system.client.query("XINFO GROUPS", journal)
            waiting += sum(_open(chat, journal, info) for info in infos if info["name"].decode() == kind)
    return waiting


def _open(chat: Chat, journal: str, info: dict[str, Any]) -> int:
    undelivered = info["lag"]
    if undelivered is None:  # as it is once an entry was deleted, which making a large group does
        after = info["last-delivered-id"].decode()
        undelivered = len(chat.system.client.query("XRANGE", journal, f"({after}", "+", "COUNT", _PAGE))
    return int(undelivered + info["pending"])
