"""What those who use sound partitions of a cluster notice of a fault of one node.

    python -m tests.helpers.isolation [--seconds 20] [--fault stopped] [--server PROGRAM]

Three primaries, each with a replica, a worker of each kind, and a gateway with the sessions of a sender and of a
reader, who acks at once. The fault befalls each primary in turn. Prints for each the median and the longest time that
each step of a message took, without the fault and with it, in milliseconds; 250 more are the aim. `--server` is the
program of another server, such as that of Redis 7.0.
"""

import argparse
import asyncio
import socket
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event
from types import TracebackType
from typing import Any, Self, cast

from imcore import AsyncChat, AsyncGateway, Chat, NewMessage, ReceiptsChanged
from imcore import msgid as msgids
from imcore.settings import Settings
from tests.helpers.cluster_soak.shards import ShardNode, Shards
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import SLOTS

SENDER, READER = "ann", "bob"
AIM_S = 0.25
NODES = 3
PAUSE_S = 0.02
"""Between two sends. Each sound partition has one in turn."""
WINDOW_S = 0.2
"""Receipts are folded for so long."""
LOOK_S = 0.01
STEPS = ("send", "push", "receipt", "storing")
"""Until: it is stored in Redis; the reader has it; the sender has the reader's receipt; it is in SQL. From the send on,
but for the receipt, which counts from the ack on."""
BACKLOG = 8
"""The connections that the system accepts for a server that does not."""
NEVER_FAILS_MS, FAILS_MS = 120_000, 1500
"""Timeouts of nodes: so long, a silent one is not replaced; or it is, soon."""

Times = Mapping[str, Sequence[float]]
"""Seconds, by step."""


@contextmanager
def again_and_again(action: Callable[[], object]) -> Iterator[None]:
    """Repeat an action in a thread for as long as the `with` lasts; raise its error at the end."""
    ending = Event()

    def run() -> None:
        while not ending.is_set():
            action()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            ending.set()
        running.result()


class Faults:
    """What befalls one of the primaries, for as long as a `with` lasts."""

    def __init__(self, shards: Shards, slots: Sequence[int]) -> None:
        self._shards, self._slots = shards, slots

    @contextmanager
    def stopped(self, node: ShardNode) -> Iterator[None]:
        """It takes connections, and says nothing."""
        self._set_timeout(NEVER_FAILS_MS)
        node.halt()
        try:
            yield
        finally:
            node.wake()

    @contextmanager
    def black_holed(self, node: ShardNode) -> Iterator[None]:
        """It says nothing, and takes no connections either: its queue of new ones is full."""
        with self.stopped(node), ExitStack() as full:
            for _ in range(2 * BACKLOG):
                one = full.enter_context(socket.socket())
                one.setblocking(False)
                with suppress(BlockingIOError):
                    one.connect(("127.0.0.1", node.port))
            yield

    @contextmanager
    def killed(self, node: ShardNode) -> Iterator[None]:
        """It is gone, and its replica takes over."""
        self._set_timeout(FAILS_MS)
        node.kill()
        try:
            yield
        finally:
            node.start()

    @contextmanager
    def resharded(self, node: ShardNode) -> Iterator[None]:
        """A slot of it moves to another node, key by key, and back, again and again."""
        slot = self.own(node)[0]
        other = next(each for each in self._shards.primaries() if each is not node)

        def there_and_back() -> None:
            for target in (other, node):
                self._shards.migrate(slot, target, pause=lambda: time.sleep(LOOK_S))

        with again_and_again(there_and_back):
            yield

    def own(self, node: ShardNode) -> list[int]:
        """Return the slots with data that a node has."""
        return [slot for slot in self._slots if node.has(slot)]

    def _set_timeout(self, ms: int) -> None:
        for node in self._shards.nodes:
            node.admin.config_set("cluster-node-timeout", ms)


FAULTS = ("stopped", "black_holed", "killed", "resharded")


class Talk:
    """A sender and a reader in a group of each partition; how long each step of their messages takes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.times: dict[str, list[float]] = defaultdict(list)
        self._sent_at: dict[str, float] = {}
        """By content."""
        self._acked_at: dict[tuple[str, str], float] = {}
        self._unstored: dict[str, list[tuple[int, float]]] = defaultdict(list)
        """By gid, msgids (packed) with the time of their sends."""
        self._senders: set[asyncio.Task[None]] = set()

    async def among(self, gids: Sequence[str], seconds: float) -> Times:
        """Let them talk in these groups for so long; return the times of all messages, once they have come through."""
        self.times = defaultdict(list)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for gid in gids:
                self._say(gid)
                await asyncio.sleep(PAUSE_S)
        give_up = time.monotonic() + 60
        while waiting := [*self._senders, *self._sent_at, *self._acked_at, *filter(None, self._unstored.values())]:
            assert time.monotonic() < give_up, f"{len(waiting)} steps have not come about: {waiting[:5]}"
            await asyncio.sleep(LOOK_S)
        assert len({len(self.times[step]) for step in STEPS}) == 1
        return self.times

    def _say(self, gid: str) -> None:
        sender = asyncio.ensure_future(self._send(gid, f"{time.monotonic()}"))
        self._senders.add(sender)
        sender.add_done_callback(self._senders.discard)

    async def _send(self, gid: str, content: str) -> None:
        self._sent_at[content] = begun = time.monotonic()
        sent = await self._chat.send(gid, content, sender_uid=SENDER)
        self.times["send"].append(time.monotonic() - begun)
        self._unstored[gid].append((msgids.pack(sent.msgid), begun))

    async def hear(self, gateway: AsyncGateway) -> None:
        """Take what the sessions get, for ever. The reader acks at once."""
        while True:
            for event in await gateway.poll(0.2):
                now = time.monotonic()
                if isinstance(event, NewMessage) and READER in {session.uid for session in event.sessions}:
                    self.times["push"].append(now - self._sent_at.pop(event.message.content))
                    self._acked_at[event.message.gid, event.message.msgid] = now
                elif isinstance(event, ReceiptsChanged):
                    for receipt in event.receipts:
                        if begun := self._acked_at.pop((receipt.gid, receipt.msgid), None):
                            self.times["receipt"].append(now - begun)

    async def look(self, path: Path) -> None:
        """Look what is in SQL, for ever."""
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            while True:
                await asyncio.sleep(LOOK_S)
                for gid, unstored in self._unstored.items():
                    if unstored:
                        newest = _newest(database, gid)
                        now = time.monotonic()
                        self.times["storing"] += [now - begun for msgid, begun in unstored if msgid <= newest]
                        unstored[:] = [(msgid, begun) for msgid, begun in unstored if msgid > newest]

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[None]:
        """Open the sessions."""
        async with AsyncChat.connect(settings=self._settings) as self._chat, self._chat.gateway(ack_every=1) as gateway:
            for uid in (SENDER, READER):
                await gateway.open(uid, start="live")
            beside = [asyncio.ensure_future(self.hear(gateway))]
            beside.append(asyncio.ensure_future(self.look(self._settings.data_dir / "imcore.db")))
            try:
                yield
            finally:
                for each in beside:
                    each.cancel()
                results = await asyncio.gather(*beside, return_exceptions=True)
                for error in results:
                    if isinstance(error, Exception):
                        raise error


def _newest(database: sqlite3.Connection, gid: str) -> int:
    with suppress(sqlite3.OperationalError):  # no worker has stored anything yet
        [newest] = database.execute("SELECT max(msgid) FROM group_msgs WHERE gid = ?", (gid,)).fetchone()
        return int(newest or 0)
    return 0


@dataclass
class Figures:
    """The times of all messages in sound partitions: without the fault, and with it."""

    fault: str
    node: int
    well: Times
    during: Times

    @property
    def more_s(self) -> float:
        """How much longer the longest of a step took."""
        return max(max(self.during[step]) - max(self.well[step]) for step in STEPS)

    def __str__(self) -> str:
        cells = [f"{self.fault:<12}{self.node}"]
        for step in STEPS:
            well, during = (f"{_ms(median(each[step]))}/{_ms(max(each[step]))}" for each in (self.well, self.during))
            cells.append(f"{step} {well} -> {during}")
        return "  ".join([*cells, "met" if self.more_s <= AIM_S else f"missed by {_ms(self.more_s - AIM_S)}"])


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


class Isolation:
    """A cluster, its workers, and the groups. For a `with`."""

    def __init__(self, folder: Path, program: Path | None = None) -> None:
        self._folder, self._program = folder, program
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            options = {"tcp-backlog": BACKLOG}
            self.shards = Shards(self._folder / "servers", NODES, program=self._program, options=options)
            starting.callback(self.shards.close)
            given = {"redis_url": self.shards.url, "receipt_window_ms": round(1000 * WINDOW_S)}
            for kind in ("persist", "receipts"):
                worker = starting.enter_context(WorkerProcess(self._folder, kind, **given))
                worker.wait_for("partition 7: working")
            self.settings = Settings.from_env({}, data_dir=str(self._folder), redis_url=self.shards.url)
            with Chat.connect(settings=self.settings) as chat:
                space, driver = chat.system.client.space, cast("Any", chat.system.client.driver)
                names = {space.partition_of(f"g{number}"): f"g{number}" for number in range(200)}
                self.gids = {int(driver.keyslot(space.journal(p))): gid for p, gid in names.items()}
                for gid in names.values():
                    chat.create_group(gid, [SENDER, READER])
            self._running = starting.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.__exit__(kind, error, at)

    def of(self, fault: str, number: int, seconds: float) -> Figures:
        """Let a fault befall the primary of some of the slots, and measure what the others notice."""
        return asyncio.run(self._of(fault, number, seconds))

    async def _of(self, fault: str, number: int, seconds: float) -> Figures:
        self.shards.wait_until_whole()
        faults = Faults(self.shards, list(self.gids))
        node = self.shards.primary_of(number * SLOTS // NODES)
        own = faults.own(node)
        hit = own[:1] if fault == "resharded" else own
        sound = [gid for slot, gid in self.gids.items() if slot not in hit]
        talk = Talk(self.settings)
        async with talk.begun():
            well = await talk.among(sound, seconds / 2)
            with getattr(faults, fault)(node):
                during = await talk.among(sound, seconds)
            await asyncio.to_thread(self.shards.wait_until_whole)
        return Figures(fault, number, well, during)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--fault", choices=FAULTS, action="append")
    parser.add_argument("--server", type=Path, help="the program of another server")
    given = parser.parse_args()
    print("median/longest in milliseconds, without the fault -> with it")
    with TemporaryDirectory() as folder, Isolation(Path(folder), given.server) as isolation:
        for fault in given.fault or FAULTS:
            for number in range(NODES):
                print(isolation.of(fault, number, given.seconds), flush=True)


if __name__ == "__main__":
    main()
