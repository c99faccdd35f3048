"""A server erases a user over the network."""

import asyncio

import pytest

from imcore import Chat
from tests.helpers.web import token
from tests.helpers.web_server import WebClient, WebServer


def test_a_server_may(web: WebServer, chat: Chat, gid: str) -> None:
    uid = f"user of {gid}"
    chat.add_members(gid, [uid])
    sent = chat.send(gid, "mine", sender_uid=uid)
    answer = web.rpc("erase_user", bearer=token("server", role="server"), uid=uid)
    assert answer["result"] == {"uid": uid, "messages": 1}
    assert chat.message_status(gid, sent.msgid).message.content == ""
    assert chat.groups_of(uid) == []


@pytest.mark.parametrize("uid", ["ann", "bob"])
def test_a_user_may_not(web: WebServer, chat: Chat, gid: str, uid: str) -> None:
    answer = web.rpc("erase_user", bearer=token("ann"), uid=uid)
    assert answer["error"]["data"]["error"] == "NotAllowed"
    assert gid in chat.groups_of(uid)


def test_a_server_says_whom(web: WebServer) -> None:
    answer = web.rpc("erase_user", bearer=token("server", role="server"))
    assert answer["error"]["data"]["error"] == "InvalidInput"


def test_a_client_learns_that_what_it_has_may_name_an_erased_user(web: WebServer, chat: Chat, gid: str) -> None:
    async def last_erasure(**options: object) -> str | None:
        async with WebClient(web.url, "ann") as ann:
            groups = (await ann.connect(**options))["groups"]
            [erasure] = [each["last_erasure"] for each in groups if each["gid"] == gid]
            return erasure

    uid = f"user of {gid}"
    chat.add_members(gid, [uid])
    sent = chat.send(gid, "mine", sender_uid=uid)
    after = {gid: sent.msgid, "a group that is not": sent.msgid}
    assert asyncio.run(last_erasure()) is None
    assert asyncio.run(last_erasure(after=after)) == ""
    chat.erase_user(uid)
    first = asyncio.run(last_erasure(after=after))
    assert first
    chat.add_members(gid, [uid])
    assert asyncio.run(last_erasure(after=after)) == first
    chat.erase_user(uid)
    assert asyncio.run(last_erasure(after=after)) not in {first, ""}
