"""The literal design of the mission, as a yardstick: a row and a push for every receipt, a transaction for every ack.

Connections to the database, each with a thread, share the work: a thread sends messages, and stores the acks of some
members, always the same ones. Messages and receipts are pushed over the same Redis, one pipeline for all of a thread.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from imcore.chat import Chat
from imcore.cli.bench.baseline.naive_store import NaiveStore
from imcore.cli.bench.harness import counters
from imcore.cli.bench.harness.fixture import TEXT
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.sessions import DEADLINE_S, IN_FLIGHT, MEMBERS, ONLINE
from imcore.errors import ImError


@dataclass(slots=True)
class NaiveRun:
    """What was pushed, and how long it took."""

    seconds: float = 0.0
    pushes: int = 0
    receipts: int = 0
    delivery_ms: list[float] = field(default_factory=list)
    receipt_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NaiveDesign:
    """The tables, a client of Redis, and the members of the group: the sender, those who are online, the others."""

    servers: BenchServers
    chat: Chat
    url: str
    gid: str
    uids: list[str]

    @property
    def sender(self) -> str:
        return self.uids[0]

    @property
    def online(self) -> list[str]:
        return self.uids[1 : ONLINE + 1]

    def store(self) -> NaiveStore:
        """Return a connection of its own to the tables."""
        return NaiveStore(self.url, self.gid)

    def publish(self, channels: list[str], text: str) -> None:
        with self.chat.system.client.driver.pipeline(transaction=False) as pipe:
            for channel in channels:
                pipe.publish(channel, text)
            pipe.execute()

    def counts(self) -> dict[str, float]:
        """Return what there is so far: rows, bytes and commands."""
        commands = counters.commands(self.chat)
        with self.store() as store:
            messages, receipts = store.count_rows()
        return {
            "rows_messages": messages,
            "rows_receipts": receipts,
            "bytes_sql": self.servers.maker.bytes_of(self.url),
            "commands": sum(commands.values()),
            "publishes": commands.get("publish", 0),
        }


@contextmanager
def open_naive(servers: BenchServers) -> Iterator[NaiveDesign]:
    """Make the tables and the group, in a database of its own."""
    uids = [f"{servers.name}-{number}" for number in range(MEMBERS)]
    with servers.chat() as chat:
        naive = NaiveDesign(servers, chat, servers.maker.new(), f"{servers.name}-literal", uids)
        with naive.store() as store:
            store.create(uids)
        yield naive


def play(naive: NaiveDesign, connections: int, messages: int) -> NaiveRun:
    """Send messages, have each acked by all who are online, and wait until the sender has every receipt."""
    with ExitStack() as things:
        hearing = things.enter_context(_Hearing(naive))
        threads = [
            things.enter_context(_Connection(naive, hearing, naive.online[number::connections]))
            for number in range(connections)
        ]
        sent = 0
        while len(hearing.known) < messages:
            while sent < messages and sent - len(hearing.known) < IN_FLIGHT:
                threads[sent % connections].tasks.put(None)
                sent += 1
            msgid = hearing.next_arrived()
            for thread in threads:
                thread.check()
                if msgid is not None:
                    thread.tasks.put(msgid)
            if time.perf_counter() - hearing.began > 4 * DEADLINE_S:
                known = len(hearing.known)
                raise ImError(f"the literal design did not get there: {known} messages are known to their sender")
        return hearing.run


class _Hearing:
    """Hears what is pushed: each online member has a channel, and the sender one for receipts."""

    def __init__(self, naive: NaiveDesign) -> None:
        self.run = NaiveRun()
        self.sent: dict[int, float] = {}
        self.known: set[int] = set()
        self._arrived: dict[int, float] = {}
        self._pushes: dict[int, int] = defaultdict(int)
        self._receipts: dict[int, int] = defaultdict(int)
        self._receipts_channel = naive.sender.encode()
        open_pubsub: Callable[..., Any] = naive.chat.system.client.driver.pubsub
        self._pubsub = open_pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(*naive.online, naive.sender)
        self._pubsub.get_message(timeout=0.2)
        self.began = time.perf_counter()

    def __enter__(self) -> "_Hearing":
        return self

    def __exit__(self, *_: object) -> None:
        self._pubsub.close()

    def next_arrived(self) -> int | None:
        """Wait for a push. Return its message if the last of the online members just received it."""
        item = self._pubsub.get_message(timeout=DEADLINE_S)
        if item is None:
            return None
        msgid, now = int(item["data"].split(b" ", 1)[0]), time.perf_counter()
        if item["channel"] == self._receipts_channel:
            self._note_receipt(msgid, now)
            return None
        self.run.pushes += 1
        self._pushes[msgid] += 1
        if self._pushes[msgid] < ONLINE:
            return None
        self._arrived[msgid] = now
        return msgid

    def _note_receipt(self, msgid: int, now: float) -> None:
        self.run.receipts += 1
        self._receipts[msgid] += 1
        if self._receipts[msgid] == ONLINE:
            self.known.add(msgid)
            self.run.seconds = now - self.began
            self.run.delivery_ms.append((self._arrived[msgid] - self.sent[msgid]) * 1000)
            self.run.receipt_ms.append((now - self._arrived[msgid]) * 1000)


class _Connection:
    """A thread with a connection. Its tasks: None is a message to send, a msgid is to be acked by its members."""

    def __init__(self, naive: NaiveDesign, hearing: _Hearing, uids: list[str]) -> None:
        self.tasks: SimpleQueue[int | None] = SimpleQueue()
        self._naive = naive
        self._hearing = hearing
        self._uids = uids
        self._error: Exception | None = None
        self._stops = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Connection":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops = True
        self.tasks.put(None)
        self._thread.join(DEADLINE_S)

    def check(self) -> None:
        """Raise the error that the thread has ended with, if it has."""
        if self._error:
            raise ImError(f"the literal design failed: {self._error}") from self._error

    def _run(self) -> None:
        try:
            with self._naive.store() as store:
                while True:
                    msgid = self.tasks.get()
                    if self._stops:
                        return
                    if msgid is None:
                        self._send(store)
                    else:
                        self._ack(store, msgid)
        except Exception as error:
            self._error = error

    def _send(self, store: NaiveStore) -> None:
        began = time.perf_counter()
        msgid = store.send(self._naive.sender, TEXT)
        self._hearing.sent[msgid] = began
        self._naive.publish(self._naive.online, f"{msgid} {self._naive.gid} {self._naive.sender} {TEXT}")

    def _ack(self, store: NaiveStore, msgid: int) -> None:
        for uid in self._uids:
            store.ack(uid, msgid)
        self._naive.publish([self._naive.sender] * len(self._uids), f"{msgid} {self._naive.gid}")
