"""Clocks that jump do no harm."""

import time

import pytest

from imcore.chat import Chat
from tests.helpers.gateways import Audience
from tests.helpers.talk import say


def test_a_gateway_misses_no_message_when_clocks_jump(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    jumps = [0.0, 7200.0, 7200.5, 100_000.0, 100_001.0]
    ahead = jumps[:1]
    monotonic, now = time.monotonic, time.time
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[0])
    monkeypatch.setattr(time, "time", lambda: now() - 1000 * ahead[0])
    with chat.gateway(ack_every=1) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        # When
        for number, jump in enumerate(jumps, 1):
            ahead[0] = jump
            say(chat, str(number))
            audience.until(lambda n=number: len(audience.heard(bob)) == n, 100_000_000)
            audience.poll()
            audience.until(lambda: [each.unread for each in chat.unread("bob")] == [0], 100_000_000)
        assert chat.online(["bob"]) == {"bob"}
    assert audience.heard(bob) == ["1", "2", "3", "4", "5"]
