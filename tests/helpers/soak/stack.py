"""The processes of the soak test, each of which may be killed at any moment and comes back a while later."""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imcore import Chat
from imcore.settings import Settings
from tests.helpers.commands import Im, Listening
from tests.helpers.processes import PythonProcess, WorkerProcess
from tests.helpers.servers import RunningServer, start_valkey
from tests.helpers.soak.script import Scene, most_talkative, shares
from tests.helpers.soak.talker import diary_of, write_plan

HEARTBEAT_MS = 500
ONLINE_MS = 2000
LEASE_MS = 1000
KEEP_MESSAGES = 100
"""So few that what somebody has missed is often trimmed."""

_WORKERS = ("persist", "persist", "receipts", "receipts", "jobs")
_REWRITE = ("--auto-aof-rewrite-min-size", "256kb", "--auto-aof-rewrite-percentage", "50")
"""The append-only file is written anew all the time, so that kills strike that too."""


class Process(Protocol):
    """What runs, can be killed and can be asked to end."""

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""

    def kill(self) -> None:
        """End it with SIGKILL."""


@dataclass
class Part:
    """A process that is to run: who it is, and what it is now."""

    kind: str
    name: str
    start: Callable[[], Process]
    process: Process
    back_at: float | None = None
    """When it comes back, while it is killed."""


class Server:
    """The Redis server as a process: started again on what it had written."""

    def __init__(self, folder: Path) -> None:
        self.running: RunningServer = start_valkey(folder, *_REWRITE)

    @property
    def runs(self) -> bool:
        return self.running.server.running

    def kill(self) -> None:
        self.running.kill()


class Soak:
    """All processes, and the people whose parts they play."""

    def __init__(
        self, folder: Path, database_url: str | None, scenes: Sequence[Scene], listeners: int, talkers: int, seed: int
    ) -> None:
        self.folder, self.scenes = folder, scenes
        self.listeners = most_talkative(scenes, listeners)
        self.killed: Counter[str] = Counter()
        self.parts: list[Part] = []
        self.running = ExitStack()
        server = self._add("server", "server", lambda: Server(folder / "server"))
        assert isinstance(server, Server)
        environment: dict[str, str] = {"redis_url": server.running.url, "data_dir": str(folder)}
        if database_url:
            environment["database_url"] = database_url
        self.settings = Settings.from_env({}, **environment)
        times = {"heartbeat_ms": HEARTBEAT_MS, "online_ms": ONLINE_MS, "lease_ms": LEASE_MS, "trim_every_ms": 1000}
        few = {"keep_messages": KEEP_MESSAGES, "receipt_window_ms": 50, "batch_size": 20}
        self._environment: dict[str, str | int] = {**environment, **times, **few}
        self.im = Im(**self._environment)
        self.chat = self.running.enter_context(Chat.connect(settings=self.settings))
        self._plans = self._write_plans(talkers, seed)

    @property
    def diaries(self) -> list[Path]:
        """What the talkers have written down."""
        return [diary_of(plan) for plan in self._plans]

    def begin(self) -> None:
        """Make the groups, and start everything but the talkers."""
        self.chat.system.database.upgrade()
        for scene in self.scenes:
            self.chat.create_group(scene.gid, {*scene.speakers, *scene.guests, *self.listeners})
        for number, name in enumerate(_WORKERS):
            self._add(name, f"{name} {number}", lambda name=name: self._work(name))
        for uid in self.listeners:
            self._add("session", uid, lambda uid=uid: self._listen(uid))

    def talk(self) -> None:
        """Start the talkers."""
        for plan in self._plans:
            self._add("talker", plan.stem, lambda plan=plan: self._speak(plan))

    def kill(self, part: Part, down_s: float) -> None:
        """Kill a process, which comes back after these seconds."""
        part.process.kill()
        part.back_at = time.monotonic() + down_s
        self.killed[part.kind] += 1

    def look_after(self) -> None:
        """Bring back what was killed long enough ago. Nothing else may have ended by itself."""
        for part in self.parts:
            if part.back_at is None and not part.process.runs:
                log = part.process.errors if isinstance(part.process, Listening) else getattr(part.process, "log", "")
                raise AssertionError(f"{part.name} ended by itself: {log}")
            if part.back_at is not None and part.back_at <= time.monotonic():
                part.process, part.back_at = part.start(), None

    def of_kind(self, *kinds: str) -> list[Part]:
        """The processes of these kinds."""
        return [part for part in self.parts if part.kind in kinds]

    def pick(self, chance: random.Random, kind: str) -> Part | None:
        """Some process of a kind that runs, if there is one."""
        running = [part for part in self.of_kind(kind) if part.back_at is None and part.process.runs]
        return chance.choice(running) if running else None

    def close(self) -> None:
        """End everything that still runs."""
        self.running.close()
        for part in reversed(self.parts):
            part.process.kill()

    def _add(self, kind: str, name: str, start: Callable[[], Process]) -> Process:
        self.parts.append(Part(kind, name, start, start()))
        return self.parts[-1].process

    def _work(self, name: str) -> WorkerProcess:
        return WorkerProcess(self.folder / "workers", name, **self._environment)

    def _listen(self, uid: str) -> Listening:
        folder = self.folder / "sessions" / str(self.listeners.index(uid))
        return Listening(self.im, folder, uid, "--ack-every", "3", "--ack-interval", "0.2")

    def _speak(self, plan: Path) -> PythonProcess:
        module = "tests.helpers.soak.talker"
        return PythonProcess(self.folder / "talkers", module, str(plan), **self._environment)

    def _write_plans(self, talkers: int, seed: int) -> list[Path]:
        plans = []
        for number, share in enumerate(shares(self.scenes, talkers, self.listeners)):
            plans.append(self.folder / f"talker{number}.json")
            write_plan(plans[-1], share, seed + number)
        return plans
