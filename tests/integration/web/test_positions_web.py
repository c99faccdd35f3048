"""Positions over real sockets: what has arrived, own other devices, private acks, and marks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imcore import Chat
from tests.helpers.deadline import wait_until
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import RunningServer
from tests.helpers.web import token
from tests.helpers.web_server import WebClient, WebServer

Say = Callable[..., list[str]]
WINDOW_MS = 200
BUSY_S = 0.3
"""What a busy machine may take beyond the 50 ms that are promised after the window."""


@pytest.fixture(scope="module")
def worker(redis: RunningServer, folder: Path, chat: Chat) -> Iterator[WorkerProcess]:
    assert chat
    with _worker(redis, folder) as worker:
        yield worker


def _worker(redis: RunningServer, folder: Path) -> WorkerProcess:
    return WorkerProcess(folder, "receipts", redis_url=redis.url, receipt_window_ms=WINDOW_MS, block_ms=50)


async def arrived(chat: Chat, gid: str, msgid: str, *uids: str) -> None:
    await asyncio.to_thread(wait_until, lambda: chat.message_status(gid, msgid).delivered_to == uids)


def test_the_pong_of_a_client_that_says_nothing_is_enough(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as ann:
            await ann.connect()
            first, second = say("1", "2")
            await arrived(chat, gid, second, "ann")
            assert chat.tally(gid, first).read == 0
            assert chat.unread("ann")[-1].last_ack_msgid is None

    asyncio.run(story())


def test_delivered_is_taken_with_and_without_an_answer(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as ann:
            await ann.connect()
            first, second, third = say("1", "2", "3")
            await ann.until(lambda: len(ann.contents(gid)) == 3)
            await ann.notify("delivered", gid=gid, msgid=first)
            await arrived(chat, gid, first, "ann")
            answer = await ann.call("delivered", gid=gid, msgid=second)
            assert answer == {
                "gid": gid,
                "uid": "ann",
                "last_delivered_msgid": second,
                "last_ack_msgid": None,
                "advanced": True,
            }
            await ann.call("ack", gid=gid, msgid=first)
            assert (await ann.call("delivered", gid=gid, msgid=second))["last_ack_msgid"] == first
            assert (await ann.call("delivered", gid=gid, msgid=first))["advanced"] is False
            assert (await ann.error("delivered", gid=gid, msgid="1577836800000-1"))["data"]["error"] == "UnknownMessage"
            assert (await ann.error("delivered", gid="nowhere", msgid=first))["data"]["error"] == "UnknownGroup"
            assert chat.tally(gid, third).read == 0

    asyncio.run(story())


def test_the_own_row_of_members_counts_as_unread_does(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    def counts(uid: str) -> dict[str, int]:
        found = web.rpc("members", bearer=token(uid), gid=gid)["result"]
        return {member["uid"]: member["unread"] for member in found}

    chat.set_group(gid, asked_by="members")
    sent = say("1", "2", "3")
    chat.ack("ann", gid, sent[1], private=True)
    assert (counts("ann"), counts("bob")) == ({"ann": 1, "bob": 0}, {"ann": 3, "bob": 0})
    chat.ack("ann", gid)
    chat.mark_unread("ann", gid, sent[0])
    assert (counts("ann"), counts("bob")) == ({"ann": 3, "bob": 0}, {"ann": 0, "bob": 0})
    server = web.rpc("members", bearer=token("backend", role="server"), gid=gid)["result"]
    assert [member["unread"] for member in server] == [0, 0]


def test_by_http_one_message_has_arrived_alone(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    first, second = say("1", "2")
    late = web.rpc("delivered", gid=gid, msgid=second)["result"]
    assert (late["last_delivered_msgid"], late["advanced"]) == (None, False)
    assert web.rpc("delivered", gid=gid, msgid=first)["result"]["advanced"] is True
    assert web.rpc("delivered", gid=gid, msgid=second)["result"]["last_delivered_msgid"] == second
    assert chat.message_status(gid, second).delivered_to == ("ann",)
    server = token("push", role="server")
    assert web.rpc("delivered", bearer=server, uid="bob", gid=gid, msgid=first)["result"]["uid"] == "bob"


@pytest.mark.parametrize("method", ["history", "pull"])
def test_what_a_socket_skips_is_missing_until_it_was_given(
    web: WebServer, chat: Chat, gid: str, say: Say, method: str
) -> None:
    async def story() -> None:
        first, second = say("1", "2")
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(start="live")
            [third] = say("3")
            await ann.until(lambda: ann.contents(gid) == ["3"])
            assert (await ann.call("delivered", gid=gid, msgid=third))["last_delivered_msgid"] is None
            await ann.call("pull", gid=gid) if method == "pull" else await ann.call("history", gid=gid, before=third)
            assert chat.message_status(gid, second).delivered_to == ()
            assert (await ann.call("delivered", gid=gid, msgid=third))["last_delivered_msgid"] == third
            assert chat.message_status(gid, first).delivered_to == ("ann",)

    asyncio.run(story())


@pytest.fixture
def twins(chat: Chat, gid: str) -> list[str]:
    """Two groups that are alike, but that ann has read some of the second one in private."""
    gids = [f"{gid} plain", f"{gid} private"]
    for each in gids:
        chat.create_group(each, ["ann", "bob"])
    return gids


def sent_to(chat: Chat, gids: list[str], *texts: str) -> dict[str, list[str]]:
    return {gid: [chat.send(gid, text, sender_uid="bob").msgid for text in texts] for gid in gids}


@pytest.mark.parametrize("limit", [1, 2, 4, None])
@pytest.mark.parametrize("read", [1, 2, 4])
@pytest.mark.parametrize("method", ["pull", "pull of all", "first unread"])
def test_what_a_pull_fills_does_not_show_what_was_read_in_private(
    web: WebServer, chat: Chat, twins: list[str], method: str, limit: int | None, read: int
) -> None:
    async def story() -> None:
        # Given a session that begins with what comes from now on
        sent = sent_to(chat, twins, *"1234")
        chat.ack("ann", twins[1], sent[twins[1]][read - 1], private=True)
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(start="live")
            newest = sent_to(chat, twins, "5")
            await ann.until(lambda: all(ann.contents(gid) == ["5"] for gid in twins))
            # When the client asks for what it has skipped, and confirms all
            given = {} if limit is None else {"limit": limit}
            for gid in twins:
                if method == "first unread":
                    await ann.call("history", gid=gid, first_unread=True, **given)
                else:
                    await ann.call("pull", **given, **({"gid": gid} if method == "pull" else {}))
            arrived = [
                (await ann.call("delivered", gid=gid, msgid=newest[gid][0]))["last_delivered_msgid"] for gid in twins
            ]
        # Then it has arrived in both groups, or in neither
        assert [msgid is not None for msgid in arrived] in ([True, True], [False, False])
        delivered = [[tally.delivered for tally in chat.status(gid, limit=0)] for gid in twins]
        assert delivered[0] == delivered[1]
        if limit is None:
            assert delivered[0] == [1] * 5

    asyncio.run(story())


def test_a_pong_confirms_what_was_read_in_private_as_if_it_had_been_sent(
    web: WebServer, chat: Chat, twins: list[str]
) -> None:
    async def story() -> None:
        sent = sent_to(chat, twins, "1", "2")
        chat.ack("ann", twins[1], private=True)
        async with WebClient(web.url, "ann") as ann:
            await ann.connect()
            await ann.until(lambda: ann.contents(twins[0]) == ["1", "2"])
            for gid in twins:
                await arrived(chat, gid, sent[gid][1], "ann")
            assert ann.contents(twins[1]) == []
            assert [chat.tally(gid, sent[gid][1]).read for gid in twins] == [0, 0]

    asyncio.run(story())


def test_the_badge_of_the_other_device_is_right_within_a_window(
    web: WebServer, chat: Chat, gid: str, say: Say, worker: WorkerProcess
) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as one, WebClient(web.url, "ann") as two:
            await one.connect()
            await two.connect()
            took = []
            for number in range(5):
                [sent] = say(str(number))
                await one.until(lambda count=number: len(one.contents(gid)) > count)
                began = time.monotonic()
                await one.call("ack", gid=gid, msgid=sent)
                position = {"gid": gid, "last_ack_msgid": sent}
                await two.until(lambda expected=position: expected in two.notices("position"))
                took.append(time.monotonic() - began)
                counts = await two.call("unread")
                assert {"gid": gid, "unread": 0} in counts
            assert sorted(took)[2] < WINDOW_MS / 1000 + 0.05 + BUSY_S, took
            assert worker.runs

    asyncio.run(story())


def test_it_is_right_after_a_kill_of_the_worker_and_after_a_reconnect(
    web: WebServer, redis: RunningServer, folder: Path, chat: Chat, gid: str, say: Say, worker: WorkerProcess
) -> None:
    async def story() -> None:
        first, second = say("1", "2")
        async with WebClient(web.url, "ann") as two:
            await two.connect()
            await two.until(lambda: len(two.contents(gid)) == 2)
            chat.ack("ann", gid, first)
            worker.kill()
            with _worker(redis, folder):
                await two.until(lambda: {"gid": gid, "last_ack_msgid": first} in two.notices("position"))
        chat.ack("ann", gid, second)
        async with WebClient(web.url, "ann") as two:
            groups = (await two.connect())["groups"]
            [group] = [each for each in groups if each["gid"] == gid]
            assert (group["last_ack_msgid"], group["unread"]) == (second, 0)

    asyncio.run(story())


def test_private_acks_and_marks_are_for_the_user_alone(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as one, WebClient(web.url, "ann") as two:
            await one.connect()
            await two.connect()
            first, second = say("1", "2")
            await one.until(lambda: len(one.contents(gid)) == 2)
            await one.notify("ack", gid=gid, msgid=second, private=True)
            await asyncio.to_thread(
                wait_until, lambda: {each.gid: each.unread for each in chat.unread("ann")}[gid] == 0
            )
            assert chat.tally(gid, second).read == 0
            await one.notify("ack", gid=gid, msgid=second, private=True)  # it is sent before the mark is set
            answer = await one.call("mark_unread", gid=gid, msgid=second)
            assert answer == {"gid": gid, "uid": "ann", "unread": 1}
            for client in (one, two):
                await client.until(lambda told=client: {"gid": gid, "last_ack_msgid": None} in told.notices("position"))
            await asyncio.sleep(0.3)
            assert {"gid": gid, "unread": 1} in await one.call("unread")
            assert await one.call("unmark", gid=gid) == {"gid": gid, "uid": "ann", "unread": 0}
            answer = await one.call("ack", gid=gid, msgid=first, private=True)
            assert (answer["last_ack_msgid"], answer["advanced"]) == (None, False)
            error = await one.error("mark_unread", gid=gid, msgid="1577836800000-1")
            assert error["data"] == {"error": "UnknownMessage", "retry": False}

    asyncio.run(story())
