"""All processes of the cluster soak, each of which may be killed or stopped at any moment."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imcore import Chat
from imcore.settings import Settings
from tests.helpers.cluster_soak.shards import Shards
from tests.helpers.processes import PythonProcess, WorkerProcess

HEARTBEAT_MS = 2000
ONLINE_MS = 6000
LEASE_MS = 1000
PARTITIONS = 8
WORKERS = ("persist", "persist", "receipts", "receipts")


@dataclass(frozen=True)
class Sizes:
    """How much goes on. `pause_s` lies between two bursts of a storm in one group, on average."""

    groups: int = 8
    sessions: int = 40
    readers: int = 4
    gateways: int = 2
    storms: int = 2
    pause_s: float = 0.6


@dataclass
class Member:
    """A process that is to run: what it is, and when it comes back while it is killed or stopped."""

    kind: str
    start: Callable[[], PythonProcess]
    process: PythonProcess
    back_at: float | None = None
    is_stopped: bool = False


class ClusterSoak:
    """The cluster, the workers, the gateways and those who send."""

    def __init__(self, folder: Path, database_url: str, sizes: Sizes, seed: int) -> None:
        self.folder, self.sizes, self._seed = folder, sizes, seed
        self.struck: Counter[str] = Counter()
        self.members: list[Member] = []
        self.running = ExitStack()
        self.shards = Shards(folder / "servers")
        self.running.callback(self.shards.close)
        self.users = [f"user{number}" for number in range(sizes.sessions)]
        self.readers = [f"reader{number}" for number in range(sizes.readers)]
        environment = {"redis_url": self.shards.url, "database_url": database_url, "data_dir": str(folder)}
        times = {"heartbeat_ms": HEARTBEAT_MS, "online_ms": ONLINE_MS, "lease_ms": LEASE_MS, "call_timeout_ms": 3000}
        few = {"receipt_window_ms": 50, "partitions": PARTITIONS, "durable_ms": 2000}
        self._environment: dict[str, str | int] = {**environment, **times, **few}
        self.settings = Settings.from_env(
            {f"IM_{name.upper()}": str(value) for name, value in self._environment.items()}
        )
        self.chat = self.running.enter_context(Chat.connect(settings=self.settings))
        space = self.chat.system.client.space
        names = {space.partition_of(f"g{number}"): f"g{number}" for number in range(200)}
        self.gids = [names[partition % PARTITIONS] for partition in range(sizes.groups)]

    @property
    def slots(self) -> list[int]:
        """The slots of the cluster that hold data."""
        client: Any = self.chat.system.client
        return sorted({client.driver.keyslot(client.space.journal(partition)) for partition in range(PARTITIONS)})

    def begin(self) -> None:
        """Make the groups, and start all processes; return when all sessions are open."""
        self.chat.system.database.upgrade()
        for gid in self.gids:
            self.chat.create_group(gid, [*self.users, *self.readers])
        for name in WORKERS:
            self._add(name, lambda name=name: WorkerProcess(self.folder / "workers", name, **self._environment))
        for number in range(self.sizes.gateways):
            self._add("gateway", self._starter("audience", number, {"uids": self.users[number :: self.sizes.gateways]}))

    def storm(self) -> None:
        """Let people send."""
        for number in range(self.sizes.storms):
            who = {
                "name": f"s{number}",
                "seed": self._seed + number,
                "gids": self.gids,
                "senders": self.users[number :: self.sizes.storms],
                "readers": self.readers[number :: self.sizes.storms],
                "pause_s": self.sizes.pause_s,
            }
            self._add("storm", self._starter("storm", number, who))

    def _starter(self, module: str, number: int, plan: dict[str, Any]) -> Callable[[], PythonProcess]:
        """Return what starts a process; a gateway has new records each time."""
        folder = self.folder / module
        folder.mkdir(exist_ok=True)

        def start() -> PythonProcess:
            again = len(list(folder.glob(f"{number}-*.json"))) if module == "audience" else 0
            path = folder / f"{number}-{again}.json"
            path.write_text(json.dumps({**plan, "records": str(path.with_suffix(".records"))}))
            return PythonProcess(folder, f"tests.helpers.cluster_soak.{module}", str(path), **self._environment)

        return start

    def records(self, module: str) -> list[Path]:
        """The files of records of all processes of a module."""
        return sorted((self.folder / module).glob("*.records"))

    def _add(self, kind: str, start: Callable[[], PythonProcess]) -> None:
        self.members.append(Member(kind, start, start()))

    # What befalls them.

    def of_kind(self, *kinds: str) -> list[Member]:
        return [member for member in self.members if member.kind in kinds]

    def pick(self, chance: random.Random, *kinds: str) -> Member | None:
        """Some process of these kinds that runs, if there is one."""
        running = [member for member in self.of_kind(*kinds) if member.back_at is None]
        return chance.choice(running) if running else None

    def kill(self, member: Member, down_s: float) -> None:
        """Kill a process, which comes back after these seconds."""
        member.process.kill()
        member.back_at = time.monotonic() + down_s

    def stop(self, member: Member, down_s: float) -> None:
        """Stop a process, which goes on after these seconds."""
        member.process.send(signal.SIGSTOP)
        member.back_at, member.is_stopped = time.monotonic() + down_s, True

    def look_after(self) -> None:
        """Bring back what was struck long enough ago. Nothing may have ended by itself."""
        for member in self.members:
            if member.back_at is None:
                assert member.process.runs, f"{member.kind} ended by itself: {member.process.log}"
            elif member.back_at <= time.monotonic():
                if member.is_stopped:
                    member.process.send(signal.SIGCONT)
                else:
                    member.process = member.start()
                member.back_at, member.is_stopped = None, False

    def all_run(self) -> bool:
        """Bring back what is due; return whether all processes run."""
        self.look_after()
        return all(member.back_at is None for member in self.members)

    def end(self, *kinds: str) -> None:
        """End processes in order."""
        for member in self.of_kind(*kinds):
            assert member.process.end() == 0, member.process.log
            self.members.remove(member)

    def close(self) -> None:
        """End everything that still runs."""
        for member in self.members:
            member.process.kill()
        self.running.close()
