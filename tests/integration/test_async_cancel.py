"""A cancellation at any await of an operation of AsyncChat leaves its connection usable, and loses nothing."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from imcore import AsyncChat, Chat, Draft
from imcore.settings import Settings
from tests.helpers.cancelling import cancel_at_each_await, was_cancelled
from tests.helpers.gateways import nodes_of
from tests.helpers.talk import leave_to_sql, push_receipts, say

MOST_S = 20.0
UIDS = ["ann", "bob", "cyd", "dan"]

Operation = Callable[[AsyncChat, str], Coroutine[Any, Any, Any]]


async def listed(items: Any) -> list[Any]:
    return [item async for item in items]


async def acked(chat: AsyncChat) -> str | None:
    return (await chat.ack("bob", "team")).last_ack_msgid


OPERATIONS: dict[str, Operation] = {
    "send": lambda chat, _: chat.send("team", "hi", sender_uid="ann", client_msgid="1"),
    "send_many": lambda chat, _: chat.send_many("team", [Draft("ann", str(n), f"m{n}") for n in range(3)]),
    "pull": lambda chat, _: chat.pull("bob"),
    "ack": lambda chat, _: acked(chat),
    "unread": lambda chat, _: chat.unread("bob"),
    "history": lambda chat, _: chat.history("bob", "team", limit=5),
    "status": lambda chat, _: chat.status("team", limit=0),
    "message_status": lambda chat, first: chat.message_status("team", first),
    "members": lambda chat, _: listed(chat.members("team")),
    "create_group": lambda chat, _: chat.create_group("new", [f"u{number}" for number in range(120)]),
    "receipts": lambda chat, _: chat.receipts("ann"),
    "open_database": lambda chat, _: chat.open_database(),
}
"""Operations that change nothing when they are repeated, by name; each takes the oldest msgid."""


@pytest.fixture(params=["valkey", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture
def oldest(chat: Chat) -> str:
    """The first of some messages, of which SQL alone has the first two."""
    chat.create_group("team", UIDS)
    sent = say(chat, *map(str, range(5)))
    chat.ack("cyd", "team")
    push_receipts(chat, sent[-1])
    leave_to_sql(chat, sent[1].msgid)
    return sent[0].msgid


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_cancelled_operation_spoils_no_other(chat: Chat, settings: Settings, oldest: str, name: str) -> None:
    operation = OPERATIONS[name]

    async def story(at: int) -> bool:
        async with AsyncChat.connect(settings=settings) as fresh:
            # Given others that use the connection at the same time
            others = [asyncio.ensure_future(fresh.groups_of(uid)) for uid in UIDS]
            others += [asyncio.ensure_future(fresh.group("team")) for _ in range(3)]  # type: ignore[list-item]
            # When
            cancelled = await was_cancelled(operation(fresh, oldest), at)
            # Then they get their own answers, and so does who repeats the operation
            answers = await asyncio.wait_for(asyncio.gather(*others), MOST_S)
            assert [(answer.gid if hasattr(answer, "gid") else answer) for answer in answers] == [
                *([["team"]] * len(UIDS)),
                *(["team"] * 3),
            ]
            repeated = await asyncio.wait_for(operation(fresh, oldest), MOST_S)
        async with AsyncChat.connect(settings=settings) as another:
            assert repeated == await operation(another, oldest)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return cancelled

    assert asyncio.run(cancel_at_each_await(story)) >= 1
    assert len({message.client_msgid for message in chat.pull("dan") if message.client_msgid}) == sum(
        bool(message.client_msgid) for message in chat.pull("dan")
    )


def test_a_cancelled_wait_for_an_answer_keeps_the_connection(chat: Chat, settings: Settings) -> None:
    chat.create_group("team", UIDS)

    async def story() -> None:
        async with AsyncChat.connect(settings=settings) as fresh:
            await fresh.group("team")
            before = connections(chat)
            # When a thousand calls are cancelled while they wait for a server that pauses
            for node in nodes_of(chat.system.client.driver):
                node.client_pause(int(1000 * MOST_S), all=False)
            calls = [asyncio.ensure_future(fresh.send("team", str(n), sender_uid="ann")) for n in range(1000)]
            for _ in range(10):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            for node in nodes_of(chat.system.client.driver):
                node.client_unpause()
            # Then their answers are dropped, and the next ones are those of the next calls
            assert all(call.cancelled() for call in calls)
            assert (await asyncio.wait_for(fresh.group("team"), MOST_S)).members == len(UIDS)
            assert connections(chat) == before

    asyncio.run(story())


def connections(chat: Chat) -> int:
    return sum(len(node.client_list(_type="normal")) for node in nodes_of(chat.system.client.driver))
