"""Live sessions in tests: the events that each was handed, and what happens around them."""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.cluster import RedisCluster

from imcore import (
    Chat,
    Event,
    Gap,
    Gateway,
    Joined,
    Left,
    Message,
    NewMessage,
    PositionMoved,
    Receipt,
    ReceiptsChanged,
    Rewound,
    Session,
)
from imcore.operations.effects import Effect, RedisCalls, SqlQuery, StartCalls
from imcore.streams.rounds import Client
from tests.helpers.async_driver import before_effects

MOST_S = 20.0
JUMPS = 5


class Audience:
    """A gateway, and the events that each of its sessions was handed."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.messages: dict[Session, list[Message]] = defaultdict(list)
        self.receipts: dict[Session, list[Receipt]] = defaultdict(list)
        self.digests: dict[Session, int] = defaultdict(int)
        self.positions: dict[Session, list[str | None]] = defaultdict(list)
        self.changes: dict[Session, list[Gap | Rewound | Joined | Left]] = defaultdict(list)
        self.events: dict[Session, list[Event]] = defaultdict(list)

    def poll(self, timeout_s: float = 0.02) -> list[Event]:
        events = self.gateway.poll(timeout_s)
        for event in events:
            for session in event.sessions:
                self.events[session].append(event)
                if isinstance(event, NewMessage):
                    self.messages[session].append(event.message)
                elif isinstance(event, ReceiptsChanged):
                    self.digests[session] += 1
                    self.receipts[session] += event.receipts
                elif isinstance(event, PositionMoved):
                    self.positions[session].append(event.last_ack_msgid)
                else:
                    self.changes[session].append(event)
        return events

    def heard(self, session: Session, gid: str = "team") -> list[str]:
        return [message.content for message in self.messages[session] if message.gid == gid]

    def until(self, condition: Callable[[], object], timeout_s: float = MOST_S) -> None:
        """Poll until the condition holds."""
        give_up = time.monotonic() + timeout_s
        is_late = False
        while not condition():
            assert not is_late, f"not so within {timeout_s} s"
            is_late = time.monotonic() >= give_up
            self.poll()

    def settled(self) -> None:
        """Poll until every session has entered and caught up, and nothing more comes."""
        self.until(lambda: all(map(_is_there, self.gateway._core.sessions)))
        while self.poll(0.1):
            pass


def _is_there(session: Session) -> bool:
    return session.is_synced and not any(cursor.behind for cursor in session.cursors.values())


class Requests:
    """What a gateway asks for: round trips to Redis, calls by function, and SQL queries."""

    def __init__(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.trips = self.sql = 0
        before_effects(chat, monkeypatch, self._note)

    def _note(self, question: Effect[Any]) -> None:
        self.sql += isinstance(question, SqlQuery)
        if isinstance(question, RedisCalls | StartCalls):
            self.trips += 1
            self.calls.update(call.function or str(call.args[0]) for call in question.calls)

    def clear(self) -> None:
        self.calls.clear()
        self.trips = self.sql = 0


class Clock:
    """The time that gateways opened from now on see: the real time, plus all jumps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monotonic, self._ahead_s = time.monotonic, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + self._ahead_s)

    def jump(self, seconds: float) -> None:
        """Put the time ahead."""
        self._ahead_s += seconds

    def jump_until(self, audience: Audience, condition: Callable[[], object], seconds: float) -> None:
        """Put the time ahead until the condition holds, where it may be that once is not enough.

        A jump ends the calls on their way, and what they were for waits anew.
        """
        for _ in range(JUMPS):
            self.jump(seconds)
            with suppress(AssertionError):
                audience.until(condition, MOST_S / JUMPS)
                return
        audience.until(condition)


def nodes_of(client: Client) -> list[Any]:
    if isinstance(client, RedisCluster):
        return [client.get_redis_connection(node) for node in client.get_primaries()]
    return [client]


def kill_connections(client: Client, kind: str, chance: random.Random | None = None) -> int:
    """Close connections of a kind (`pubsub`, `normal`) from the server's side: all, or by chance one half."""
    killed = 0
    for node in nodes_of(client):
        me = node.client_id()
        for connection in node.client_list(_type=kind):
            if int(connection["id"]) != me and (chance is None or chance.random() < 0.5):
                killed += node.client_kill_filter(_id=int(connection["id"]))
    return killed


def subscriptions(client: Client) -> set[str]:
    return {each["id"] for node in nodes_of(client) for each in node.client_list(_type="pubsub")}
