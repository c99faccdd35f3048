"""A device that is killed at random moments has everything once, and sends everything once."""

import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.model.values import Message, MessageTally, Receipt
from imcore.settings import Settings
from tests.helpers.devices import listen
from tests.helpers.talk import say
from tests.helpers.workers import deliver_receipts

SEEDS = int(os.environ.get("IM_LIVE_SEEDS", "2"))
"""How many random histories are played; for a long run set IM_LIVE_SEEDS."""


class Killed(BaseException):
    """The process ends here and now."""


class Danger:
    """Sessions that die between any two calls of Redis or of the local database."""

    def __init__(self, chat: Chat, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chance = chance
        self.odds = 0.0
        for name in ("keep", "begin", "mark_tried"):
            monkeypatch.setattr(LocalDatabase, name, self.around(getattr(LocalDatabase, name)))
        for name in ("call", "call_many", "call_each"):
            monkeypatch.setattr(chat.system.client, name, self.around(getattr(chat.system.client, name)))

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def dangerous(*args: Any, **kwargs: Any) -> Any:
            self.perhaps()
            result = call(*args, **kwargs)
            self.perhaps()
            return result

        return dangerous

    def perhaps(self) -> None:
        if self.chance.random() < self.odds:
            raise Killed


@pytest.mark.parametrize("seed", range(SEEDS))
def test_sessions_killed_at_random_moments(
    settings: Settings, chat: Chat, other: Chat, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    chance = random.Random(seed)
    danger = Danger(chat, chance, monkeypatch)
    path = path_of(settings.data_dir, "bob")
    gids, rounds, killed = ["team", "home"], 25, 0
    shown: list[list[Message | Receipt]] = []
    for gid in gids:
        other.create_group(gid, ["ann", "bob", "cyd"])

    def session(until: Callable[[LocalDatabase], bool]) -> None:
        with LocalDatabase(path, "bob", exclusive=True) as local:
            shown.append([])
            listen(Device(chat, "bob", local), lambda: until(local), shown[-1], ack_every=2, ack_interval_s=0.02)

    # When
    for number in range(rounds):
        for gid in gids:
            say(other, *(f"{number}.{each}" for each in range(chance.randrange(4))), gid=gid)
        with LocalDatabase(path, "bob") as local:
            local.queue(chance.choice(gids), f"bob {number}")
        danger.odds = 0.03
        give_up = time.monotonic() + 0.3
        try:
            session(lambda _, give_up=give_up: time.monotonic() > give_up)
        except Killed:
            killed += 1
        danger.odds = 0.0
        other.ack("ann", chance.choice(gids))
        deliver_receipts(other)
    for gid in gids:
        other.ack("cyd", gid)
    deliver_receipts(other)
    # Then he has everything, and all that he has acked was shown, by each session in order
    session(
        lambda local: (
            all(lines_of(local, gid) == lines_at(other, gid) for gid in gids)
            and {each.unread for each in other.unread("bob")} == {0}
        )
    )
    for gid in gids:
        messages = [[each for each in one if isinstance(each, Message) and each.gid == gid] for one in shown]
        for one in messages:
            assert [each.seq for each in one] == sorted({each.seq for each in one})
        assert {each.msgid for one in messages for each in one} == {msgid for msgid, *_ in lines_at(other, gid)}
    bob_texts = [text for gid in gids for _, text, state in lines_at(other, gid) if state]
    assert sorted(bob_texts) == sorted(f"bob {number}" for number in range(rounds))
    assert 5 < killed < rounds


def lines_of(local: LocalDatabase, gid: str) -> list[tuple[str | None, str, str | None]]:
    return [(line.msgid, line.content, line.state) for line in local.log(gid)]


def lines_at(chat: Chat, gid: str) -> list[tuple[str | None, str, str | None]]:
    """The messages of a group that bob must have in the end, by the server."""
    return [
        (each.message.msgid, each.message.content, state_of(each) if each.message.sender_uid == "bob" else None)
        for each in chat.status(gid, limit=0)
    ]


def state_of(status: MessageTally) -> str:
    if not status.read:
        return "stored"
    return f"read {status.read}/{status.read + status.unread}" if status.unread else "read by all"
