"""Which files of the product somebody has to know who follows one command: those in which a function runs.

A walk is played twice on a server and a database of its own. The first time fills caches and opens connections; the
second time is traced. What runs while a module is loaded is left out. So are the two stores' own packages, `streams`
and `sql`: to follow a message as far as `client.call(...)` or a named query, nobody has to open them.
Commit 87fc6d2 had 110 classes in 52 files from `im send` to the sender's receipt, and 32 files for `im check`.

This module starts a server and traces its own process: run it by `python -m tests.house`, not inside another test.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from inspect import CO_OPTIMIZED
from io import StringIO
from pathlib import Path
from types import FrameType

from imcore import Chat, ReceiptsChanged
from imcore.cli.app import app
from imcore.gateway.gateway import Gateway
from imcore.settings import Settings
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.persist_runs import new_persist
from tests.helpers.servers import start_valkey
from tests.house.loaded import second_names
from tests.house.sources import ROOT

_STORES = ("imcore/streams/", "imcore/sql/")
_LONGEST_S = 20


@dataclass(frozen=True)
class Walks:
    """The files of each walk, relative to the repository; and what was loaded under a second name meanwhile."""

    receipt: list[str]
    check: list[str]
    second_names: list[str]


def walked() -> Walks:
    """Play both walks; return which files were on the way."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        server = start_valkey(folder / "server", appendonly=False)
        stack.callback(server.stop)
        _set_environment(server.url, folder)
        chat = stack.enter_context(Chat.connect(settings=replace(Settings.from_env(), block_ms=20)))
        chat.system.database.upgrade()
        chat.create_group("team", ["ann", "bob"])
        gateway = stack.enter_context(chat.gateway(ack_interval_s=0.1))
        worker = ReceiptsWorker(chat.system.client, chat.system.database, chat.system.settings)
        stack.callback(worker.close)
        gateway.open("ann")
        gateway.open("bob")
        receipt = _second(lambda: _send_and_hear(gateway, worker))
        _store(chat)
        return Walks(receipt, _second(lambda: _im("check")), second_names())


def _set_environment(url: str, folder: Path) -> None:
    for name in [name for name in os.environ if name.startswith("IM_")]:
        del os.environ[name]
    os.environ |= {
        "IM_REDIS_URL": url,
        "IM_DATABASE_URL": f"sqlite:///{folder / 'imcore.db'}",
        "IM_DATA_DIR": str(folder / "data"),
    }


def _send_and_hear(gateway: Gateway, worker: ReceiptsWorker) -> None:
    """Send as ann; let bob's session ack, and the worker fold, until ann's session has the receipt."""
    _im("send", "team", "hello", "--from", "ann")
    give_up = time.monotonic() + _LONGEST_S
    while not any(isinstance(event, ReceiptsChanged) for event in gateway.poll(0.02)):
        if time.monotonic() > give_up:
            raise TimeoutError(f"no receipt within {_LONGEST_S} s")
        worker.step()


def _store(chat: Chat) -> None:
    """Let the worker `persist` store all that was sent."""
    with closing(new_persist(chat.system.client, chat.system.database, chat.system.settings)) as worker:
        while not worker.drained():
            worker.step()


def _im(*arguments: str) -> None:
    """Run one command of `im` in this process."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as complaints:
        try:
            app.main(list(arguments))
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"im {' '.join(arguments)}: {complaints.getvalue()}") from None


def _second(walk: Callable[[], None]) -> list[str]:
    walk()
    with _traced() as files:
        walk()
    names = {str(Path(file).relative_to(ROOT)) for file in files if file.startswith(f"{ROOT}/imcore/")}
    return sorted(name for name in names if not name.startswith(_STORES))


@contextmanager
def _traced() -> Iterator[set[str]]:
    """Collect the files whose functions run, in this thread and in those that it starts."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_flags & CO_OPTIMIZED:  # neither a module nor the body of a class
            files.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
