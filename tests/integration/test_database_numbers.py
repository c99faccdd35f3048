"""Two systems on one server, each in a database of its own: neither receives from the other."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from imcore.chat import Chat
from imcore.gateway.fanout import NewMessage
from imcore.gateway.gateway import Gateway
from tests.helpers.deadline import wait_until


@pytest.fixture
def chats(valkey: str) -> Iterator[tuple[Chat, Chat]]:
    """The same group of the same people in both."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(Chat.connect(f"{valkey}?db={number}")) for number in (0, 5))
        for chat in (first, second):
            chat.create_group("team", ["ann", "bob"])
        yield first, second


def heard(gateway: Gateway) -> list[str]:
    return [event.message.content for event in gateway.poll(0.2) if isinstance(event, NewMessage)]


@pytest.mark.parametrize("other_way", [False, True])
def test_sessions_receive_only_from_their_own_database(chats: tuple[Chat, Chat], other_way: bool) -> None:
    own, foreign = reversed(chats) if other_way else chats
    with own.gateway() as gateway:
        # Given a session that has begun
        session = gateway.open("bob")
        wait_until(
            lambda: gateway.poll(0.01) == [] and "team" in session.cursors and not session.cursors["team"].behind
        )

        # When something is said in the other database, and bob is removed there
        foreign.send("team", "not for here", sender_uid="ann")
        foreign.remove_members("team", ["bob"])
        foreign.create_group("more", ["bob"])

        # Then nothing of it arrives
        assert heard(gateway) == []
        assert list(session.cursors) == ["team"]

        # And these are the same
        own.send("team", "for here", sender_uid="ann")
        assert wait_until(lambda: heard(gateway)) == ["for here"]
