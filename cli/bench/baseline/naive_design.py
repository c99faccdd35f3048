"""The literal design of the mission, as a yardstick: a row and a push for every receipt, a transaction for every ack.

The work is shared by connections to the database, each with a thread. A thread sends messages, and stores the acks of
the same members every time. Messages and receipts are pushed over the same Redis, in one pipeline a thread.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Self

from imcore.chat import Chat
from imcore.cli.bench.baseline.naive_store import NaiveStore
from imcore.cli.bench.harness.servers import BenchServers
from imcore.cli.bench.harness.sessions import DEADLINE_S, IN_FLIGHT, MEMBERS, ONLINE, SessionCounts
from imcore.cli.bench.harness.traffic import TEXT
from imcore.errors import ImError


@dataclass(frozen=True, slots=True)
class NaiveDesign:
    """The tables at `url`, a client of Redis, and a group. Its first member sends, and the next 40 are online."""

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


@contextmanager
def open_naive(servers: BenchServers) -> Iterator[NaiveDesign]:
    """Make the tables and the group, in a database of its own."""
    uids = [f"{servers.name}-{number}" for number in range(MEMBERS)]
    with servers.chat() as chat:
        naive = NaiveDesign(chat, servers.maker.new(), f"{servers.name}-literal", uids)
        with naive.store() as store:
            store.create(uids)
        yield naive


def play(naive: NaiveDesign, connections: int, messages: int) -> SessionCounts:
    """Send messages, have each acked by all online members, and wait until the sender has every receipt."""
    with ExitStack() as things:
        listener = things.enter_context(closing(_Listener(naive)))
        seen = listener.seen
        threads = [things.enter_context(_Connection(naive.store)) for _ in range(connections)]
        shares = [naive.online[number::connections] for number in range(connections)]
        sent = 0
        while len(seen.known) < messages:
            while sent < messages and sent - len(seen.known) < IN_FLIGHT:
                threads[sent % connections].tasks.put(partial(_send, naive, seen))
                sent += 1
            msgid = listener.next_arrived()
            for thread, uids in zip(threads, shares, strict=True):
                thread.check()
                if msgid is not None:
                    thread.tasks.put(partial(_ack, naive, uids, msgid))
            if time.perf_counter() - seen.began > 4 * DEADLINE_S:
                raise ImError(f"the literal design did not get there: its sender knows of {len(seen.known)} messages")
        return seen


class _Listener:
    """Receives the pushes: each online member has a channel, and the sender has one for receipts."""

    def __init__(self, naive: NaiveDesign) -> None:
        self._receipts: Counter[int] = Counter()
        self._receipts_channel = naive.sender.encode()
        open_pubsub: Callable[..., Any] = naive.chat.system.client.driver.pubsub
        self._pubsub = open_pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(*naive.online, naive.sender)
        self._pubsub.get_message(timeout=0.2)
        self.seen = SessionCounts()

    def close(self) -> None:
        self._pubsub.close()

    def next_arrived(self) -> int | None:
        """Wait for a push. Return its message if the last of the online members just received it."""
        item = self._pubsub.get_message(timeout=DEADLINE_S)
        if item is None:
            return None
        msgid, now = int(item["data"].split(b" ", 1)[0]), time.perf_counter()
        if item["channel"] == self._receipts_channel:
            self.seen.digests += 1
            self._receipts[msgid] += 1
            if self._receipts[msgid] == ONLINE:
                self.seen.known[msgid] = now
            return None
        return msgid if self.seen.note_arrival(msgid, 1, now) else None


class _Connection(threading.Thread):
    """A thread with a connection to the tables, which does its tasks in their order."""

    def __init__(self, open_store: Callable[[], NaiveStore]) -> None:
        super().__init__(daemon=True)
        self.tasks: SimpleQueue[Callable[[NaiveStore], None] | None] = SimpleQueue()
        self._open_store = open_store
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tasks.put(None)
        self.join(DEADLINE_S)

    def check(self) -> None:
        """Raise ImError if the thread has failed."""
        if self._error:
            raise ImError(f"the literal design failed: {self._error}") from self._error

    def run(self) -> None:
        try:
            with self._open_store() as store:
                while task := self.tasks.get():
                    task(store)
        except Exception as error:
            self._error = error


def _send(naive: NaiveDesign, seen: SessionCounts, store: NaiveStore) -> None:
    began = time.perf_counter()
    msgid = store.send(naive.sender, TEXT)
    seen.sent[msgid] = began
    naive.publish(naive.online, f"{msgid} {naive.gid} {naive.sender} {TEXT}")


def _ack(naive: NaiveDesign, uids: list[str], msgid: int, store: NaiveStore) -> None:
    for uid in uids:
        store.ack(uid, msgid)
    naive.publish([naive.sender] * len(uids), f"{msgid} {naive.gid}")
