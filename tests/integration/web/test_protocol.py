"""The protocol over real sockets: messages, acks, receipts, resuming, and what each method answers."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from imcore import Chat
from tests.helpers.deadline import wait_until
from tests.helpers.web import token
from tests.helpers.web_server import WebClient, WebServer

Say = Callable[..., list[str]]


def test_two_people_talk_and_see_who_has_read(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as ann, WebClient(web.url, "bob") as bob:
            # Given
            await ann.connect(start="live")
            await bob.connect(start="live")
            # When
            sent = await ann.call("send", gid=gid, content="Lunch?", client_msgid="c-1", meta={"kind": "question"})
            await bob.until(lambda: bob.contents(gid))
            # Then
            [heard] = [each for each in bob.notices("message") if each["gid"] == gid]
            assert {**heard, "recipients": 1} == sent
            assert (sent["content"], sent["sender_uid"], sent["seq"], sent["recipients"]) == ("Lunch?", "ann", 1, 1)
            assert sent["meta"] == {"kind": "question"}
            assert chat.unread("bob")[0].unread >= 0
            assert (await ann.call("status", gid=gid, msgid=sent["msgid"]))["unread_by"] == ["bob"]
            # When bob's page has shown it
            await bob.notify("ack", gid=gid, msgid=sent["msgid"])
            # Then
            await asyncio.to_thread(wait_until, lambda: chat.tally(gid, sent["msgid"]).read == 1)
            status = await ann.call("status", gid=gid, msgid=sent["msgid"])
            assert ([each["uid"] for each in status["read_by"]], status["unread_by"]) == (["bob"], [])

    asyncio.run(story())


def test_nothing_counts_as_read_because_a_socket_has_it(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    async def story() -> None:
        async with WebClient(web.url, "ann") as ann:
            await ann.connect()
            sent = say("1", "2", "3")
            await ann.until(lambda: ann.contents(gid) == ["1", "2", "3"])
            await ann.notify("ack", gid=gid, msgid=sent[0])
            await asyncio.to_thread(wait_until, lambda: chat.tally(gid, sent[0]).read == 1)
        assert [chat.tally(gid, each).read for each in sent] == [1, 0, 0]

    asyncio.run(story())


def test_a_client_resumes_where_it_says_and_misses_nothing(web: WebServer, gid: str, say: Say) -> None:
    async def story() -> None:
        sent = say("1", "2", "3", "4")
        async with WebClient(web.url, "ann") as ann:
            connected = await ann.connect(after={gid: sent[1]})
            group = next(each for each in connected["groups"] if each["gid"] == gid)
            where = {"last_ack_msgid": None, "last_msgid": sent[3], "after": sent[1], "last_erasure": ""}
            assert group == {"gid": gid, "unread": 4, **where}
            assert connected["dataset"]
            await ann.until(lambda: ann.contents(gid) == ["3", "4"])
        say("5")
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(after={gid: sent[3]})
            say("6")
            await ann.until(lambda: ann.contents(gid) == ["5", "6"])
        async with WebClient(web.url, "ann") as ann:
            await ann.connect()
            await ann.until(lambda: ann.contents(gid) == ["1", "2", "3", "4", "5", "6"])
            assert {each["after"] for each in connected["groups"] if each["gid"] == gid} == {sent[1]}

    asyncio.run(story())


def test_of_many_missed_messages_the_newest_come_after_a_gap(web: WebServer, gid: str, say: Say) -> None:
    async def story() -> None:
        sent = say(*map(str, range(10)))
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(most=3)
            await ann.until(lambda: ann.contents(gid) == ["7", "8", "9"])
            of_group = [each for each in ann.told if each["params"].get("gid") == gid]
            assert of_group[0] == {
                "jsonrpc": "2.0",
                "method": "gap",
                "params": {"gid": gid, "from_msgid": sent[0], "to_msgid": sent[6]},
            }
            page = await ann.call("history", gid=gid, before=sent[7], limit=5)
            assert [each["content"] for each in page["messages"]] == ["2", "3", "4", "5", "6"]
            assert (page["older"], page["newer"]) == (True, True)

    asyncio.run(story())


def test_joining_and_leaving_is_told_while_live(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        async with WebClient(web.url, "cy") as cy:
            await cy.connect()
            chat.add_members(gid, ["cy"])
            chat.send(gid, "hello cy", sender_uid="ann")
            await cy.until(lambda: cy.contents(gid) == ["hello cy"])
            chat.remove_members(gid, ["cy"])
            await cy.until(lambda: cy.notices("left"))
            assert [each["method"] for each in cy.told] == ["joined", "message", "left"]
            assert (await cy.error("history", gid=gid))["data"] == {"error": "NotMember", "retry": False}

    asyncio.run(story())


def test_an_ack_from_history_counts_too(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    async def story() -> None:
        sent = say("1", "2")
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(start="live")
            await ann.notify("ack", gid=gid, msgid=sent[1])
            await asyncio.to_thread(wait_until, lambda: chat.tally(gid, sent[1]).read == 1)
            answer = await ann.call("ack", gid=gid, msgid=sent[0])
            assert answer == {"gid": gid, "uid": "ann", "last_ack_msgid": sent[1], "advanced": False}
            ahead = await ann.error("ack", gid=gid, msgid="9999999999999-0")
            assert ahead["data"]["error"] in {"UnknownMessage", "InvalidInput"}

    asyncio.run(story())


def test_a_user_sees_nothing_from_before_the_join(web: WebServer, chat: Chat, gid: str, say: Say) -> None:
    async def story() -> None:
        [before] = say("a secret from before")
        chat.set_group(gid, asked_by="members")
        chat.add_members(gid, ["dora"])
        [after] = say("welcome")
        async with WebClient(web.url, "dora") as dora:
            await dora.connect(after={gid: "0-0"})
            await dora.until(lambda: dora.contents(gid))
            assert dora.contents(gid) == ["welcome"]
            assert [each["content"] for each in await dora.call("status", gid=gid)] == ["welcome"]
            assert (await dora.error("status", gid=gid, msgid=before))["data"]["error"] == "UnknownMessage"
            assert (await dora.call("status", gid=gid, msgid=after))["content"] == "welcome"
            page = await dora.call("history", gid=gid)
            assert [each["content"] for each in page["messages"]] == ["welcome"]

    asyncio.run(story())


def test_a_server_speaks_for_others_and_changes_groups(web: WebServer, chat: Chat) -> None:
    server = token("backend", role="server")
    assert web.rpc("create_group", bearer=server, gid="made", uids=["ann", "bob"])["result"] == {
        "gid": "made",
        "members": 2,
    }
    sent = web.rpc("send", bearer=server, gid="made", content="from ann", uid="ann")["result"]
    assert sent["sender_uid"] == "ann"
    assert [
        each["unread"] for each in web.rpc("unread", bearer=server, uid="bob")["result"] if each["gid"] == "made"
    ] == [1]
    assert web.rpc("add_members", bearer=server, gid="made", uids=["cy"])["result"]["members"] == 3
    assert [each["uid"] for each in web.rpc("members", bearer=server, gid="made")["result"]] == ["ann", "bob", "cy"]
    assert web.rpc("remove_members", bearer=server, gid="made", uids=["cy"])["result"]["members"] == 2
    assert web.rpc("online", bearer=server, uids=["ann"])["result"] == []
    assert web.rpc("ack", bearer=server, gid="made", uid="bob")["result"]["last_ack_msgid"] == sent["msgid"]
    recalled = web.rpc("recall", bearer=server, gid="made", msgid=sent["msgid"], admin=True)["result"]
    assert recalled["recalls"] == sent["msgid"]
    for method, params in (("create_group", {"gid": "x"}), ("send", {"gid": "made", "content": "x", "uid": "bob"})):
        assert web.rpc(method, **params)["error"]["data"] == {"error": "NotAllowed", "retry": False}
    assert web.rpc("group", gid="other")["error"]["data"]["error"] in {"NotMember", "UnknownGroup"}


def test_presence_is_told_to_members_only(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        chat.create_group("strangers", ["zoe"])
        async with WebClient(web.url, "ann") as ann, WebClient(web.url, "bob") as bob, WebClient(web.url, "zoe") as zoe:
            for client in (ann, bob, zoe):
                await client.connect()
            assert await ann.call("online", gid=gid) == ["ann", "bob"]
            assert await ann.call("online", gid=gid, uids=["bob", "zoe"]) == ["bob"]
            assert [each["uid"] for each in await ann.call("members", gid=gid, uids=["zoe", "bob"])] == ["bob"]
            assert (await ann.error("online", gid="strangers"))["data"]["error"] == "NotMember"

    asyncio.run(story())


@pytest.mark.parametrize("method", ["status", "tallies", "members", "group", "history", "send", "ack", "pull"])
def test_a_group_of_others_is_closed(web: WebServer, chat: Chat, method: str) -> None:
    chat.create_group("private", ["zoe"])
    params: dict[str, Any] = {"gid": "private"}
    params |= {"tallies": {"msgids": []}, "send": {"content": "x"}}.get(method, {})
    error = web.rpc(method, **params)["error"]
    assert error["data"] == {"error": "NotMember", "retry": False}
    assert "zoe" not in error["message"]
