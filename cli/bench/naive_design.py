"""The literal design of the mission, as the yardstick: a stored receipt per recipient, a transaction per ack.

It is written as well as that design allows. A message and the receipts of all its recipients are one statement, made
of `group_users` by the database itself; an ack is one statement too, which moves `last_ack_msgid` and flips the
receipts it passed; the statements are prepared, the primary keys are those that the statements need, and an update
changes no index. A commit does not wait for the disk, since an ack in Redis does not either. Messages and receipts are
pushed over the same Redis, by one pipeline for the 40 of them.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from imcore.chat import Chat
from imcore.cli.bench import counters
from imcore.cli.bench.naive_sql import Store, open_store
from imcore.cli.bench.sessions import DEADLINE_S, IN_FLIGHT, MEMBERS, ONLINE, TEXT
from imcore.cli.bench.stack import Stack
from imcore.errors import ImError
from imcore.streams.client import Client


@dataclass(slots=True)
class NaiveRun:
    """What came of it."""

    seconds: float = 0.0
    pushes: int = 0
    receipts: int = 0
    delivery_ms: list[float] = field(default_factory=list)
    receipt_ms: list[float] = field(default_factory=list)


@dataclass(slots=True)
class NaiveDesign:
    """The tables, a connection to Redis, and the group's people."""

    stack: Stack
    chat: Chat
    url: str
    gid: str
    uids: list[str]

    @property
    def sender(self) -> str:
        """Who sends."""
        return self.uids[0]

    @property
    def online(self) -> list[str]:
        """Who receives and acks."""
        return self.uids[1 : ONLINE + 1]

    def store(self) -> Store:
        """Return a connection of its own to the tables."""
        return open_store(self.url, self.gid)

    def counts(self) -> dict[str, float]:
        """Return what there is so far: rows, bytes and commands."""
        commands = counters.commands(self.chat)
        store = self.store()
        try:
            messages, receipts = store.count_rows()
        finally:
            store.close()
        return {
            "rows_messages": messages,
            "rows_receipts": receipts,
            "bytes_sql": self.stack.place.bytes_of(self.url),
            "commands": sum(commands.values()),
            "publishes": commands.get("publish", 0),
        }


@contextmanager
def open_naive(stack: Stack) -> Iterator[NaiveDesign]:
    """Make the tables and the group, in a database of their own beside the other's."""
    uids = [f"{stack.name}-{number}" for number in range(MEMBERS)]
    url = stack.place.new()
    with stack.chat() as chat:
        literal = NaiveDesign(stack, chat, url, f"{stack.name}-literal", uids)
        store = literal.store()
        try:
            store.create(uids)
        finally:
            store.close()
        yield literal


def play(literal: NaiveDesign, connections: int, messages: int) -> NaiveRun:
    """Send messages, have each acked by all who are online, and wait until the sender has every receipt."""
    with _Ears(literal) as ears:
        (_one_by_one if connections == 1 else _side_by_side)(literal, ears, connections, messages)
        return ears.played


class _Ears:
    """Hears what is pushed: each online member has a channel, and the sender one for receipts."""

    def __init__(self, literal: NaiveDesign) -> None:
        self.played = NaiveRun()
        self.sent: dict[int, float] = {}
        self.arrived: dict[int, float] = {}
        self.known: set[int] = set()
        self._pushes: dict[int, int] = defaultdict(int)
        self._receipts: dict[int, int] = defaultdict(int)
        self._receipts_channel = literal.sender.encode()
        open_pubsub: Callable[..., Any] = literal.chat.system.client.driver.pubsub
        self._pubsub = open_pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(*literal.online, literal.sender)
        self._pubsub.get_message(timeout=0.2)
        self.began = time.perf_counter()

    def __enter__(self) -> "_Ears":
        return self

    def __exit__(self, *_: object) -> None:
        self._pubsub.close()

    def hear(self) -> int | None:
        """Take what comes next; return the message that the last of the online members just received, if so."""
        item = self._pubsub.get_message(timeout=DEADLINE_S)
        if item is None:
            return None
        msgid, now = int(item["data"].split(b" ", 1)[0]), time.perf_counter()
        if item["channel"] == self._receipts_channel:
            self._receipt(msgid, now)
            return None
        self.played.pushes += 1
        self._pushes[msgid] += 1
        if self._pushes[msgid] < ONLINE:
            return None
        self.arrived[msgid] = now
        return msgid

    def _receipt(self, msgid: int, now: float) -> None:
        self.played.receipts += 1
        self._receipts[msgid] += 1
        if self._receipts[msgid] == ONLINE:
            self.known.add(msgid)
            self.played.seconds = now - self.began
            self.played.delivery_ms.append((self.arrived[msgid] - self.sent[msgid]) * 1000)
            self.played.receipt_ms.append((now - self.arrived[msgid]) * 1000)


def _push(client: Client, literal: NaiveDesign, msgid: int) -> None:
    _publish(client, literal.online, f"{msgid} {literal.gid} {literal.sender} {TEXT}")


def _publish(client: Client, channels: list[str], text: str) -> None:
    with client.pipeline(transaction=False) as pipe:
        for channel in channels:
            pipe.publish(channel, text)
        pipe.execute()


def _one_by_one(literal: NaiveDesign, ears: _Ears, _connections: int, messages: int) -> None:
    store, client = literal.store(), literal.chat.system.client.driver
    try:
        for _ in range(messages):
            began = time.perf_counter()
            msgid = store.send(literal.sender, TEXT)
            ears.sent[msgid] = began
            _push(client, literal, msgid)
            while ears.hear() is None:
                _check(ears, began)
            for uid in literal.online:
                store.ack(uid, msgid)
            _publish(client, [literal.sender] * ONLINE, f"{msgid} {literal.gid}")
            while msgid not in ears.known:
                ears.hear()
                _check(ears, began)
    finally:
        store.close()


def _side_by_side(literal: NaiveDesign, ears: _Ears, connections: int, messages: int) -> None:
    desks = [_Desk(literal, ears, literal.online[number::connections]) for number in range(connections)]
    try:
        sent = 0
        while len(ears.known) < messages:
            while sent < messages and sent - len(ears.known) < IN_FLIGHT:
                desks[sent % connections].tasks.put(None)
                sent += 1
            msgid = ears.hear()
            if msgid is not None:
                for desk in desks:
                    desk.tasks.put(msgid)
            for desk in desks:
                desk.check()
            _check(ears, ears.began)
    finally:
        for desk in desks:
            desk.stop()


def _check(ears: _Ears, began: float) -> None:
    if time.perf_counter() - began > 4 * DEADLINE_S:
        raise ImError(f"the literal design did not get there: {len(ears.known)} messages are known to their sender")


class _Desk:
    """A thread with a connection: it sends messages, and takes the acks of some members, always the same ones."""

    def __init__(self, literal: NaiveDesign, ears: _Ears, uids: list[str]) -> None:
        self.tasks: SimpleQueue[int | None] = SimpleQueue()
        self._literal = literal
        self._ears = ears
        self._uids = uids
        self._error: Exception | None = None
        self._stops = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread failed with."""
        if self._error:
            raise ImError(f"the literal design failed: {self._error}") from self._error

    def stop(self) -> None:
        """End the thread after what it has in hand."""
        self._stops = True
        self.tasks.put(None)
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        store = self._literal.store()
        try:
            while not self._stops:
                msgid = self.tasks.get()
                if self._stops:
                    return
                if msgid is None:
                    self._send(store)
                else:
                    self._ack(store, msgid)
        except Exception as error:
            self._error = error
        finally:
            store.close()

    def _send(self, store: Store) -> None:
        began = time.perf_counter()
        msgid = store.send(self._literal.sender, TEXT)
        self._ears.sent[msgid] = began
        _push(self._literal.chat.system.client.driver, self._literal, msgid)

    def _ack(self, store: Store, msgid: int) -> None:
        for uid in self._uids:
            store.ack(uid, msgid)
        client = self._literal.chat.system.client.driver
        _publish(client, [self._literal.sender] * len(self._uids), f"{msgid} {self._literal.gid}")
