"""What users are told over the network about what others have read: as the group's policy says."""

from typing import Any

import pytest

from imcore import Chat
from tests.helpers.talk import say
from tests.helpers.web import token
from tests.helpers.web_server import WebServer


@pytest.fixture
def msgid(chat: Chat, gid: str) -> str:
    """A message of ann's that bob has read."""
    [sent] = say(chat, "hi", gid=gid)
    chat.ack("bob", gid)
    return sent.msgid


def members(web: WebServer, gid: str, uid: str) -> dict[str, tuple[Any, Any]]:
    found = web.rpc("members", bearer=token(uid), gid=gid)["result"]
    return {member["uid"]: (member["last_ack_msgid"], member["unread"]) for member in found}


def error(answer: Any) -> str:
    name: str = answer["error"]["data"]["error"]
    return name


def test_by_default_only_the_sender_is_told(web: WebServer, gid: str, msgid: str) -> None:
    of_ann = web.rpc("status", bearer=token("ann"), gid=gid, msgid=msgid)["result"]
    assert [reader["uid"] for reader in of_ann["read_by"]] == ["bob"]
    assert error(web.rpc("status", bearer=token("bob"), gid=gid, msgid=msgid)) == "NotAllowed"
    assert error(web.rpc("why", bearer=token("bob"), gid=gid, msgid=msgid, of="ann")) == "NotAllowed"
    assert web.rpc("status", bearer=token("bob"), gid=gid)["result"] == []
    assert web.rpc("tallies", bearer=token("bob"), gid=gid, msgids=[msgid])["result"] == []
    assert members(web, gid, "ann") == {"ann": (msgid, 0), "bob": (None, None)}
    assert members(web, gid, "bob") == {"ann": (None, None), "bob": (msgid, 0)}
    why = web.rpc("why", bearer=token("ann"), gid=gid, msgid=msgid, of="bob")["result"]
    assert (why["uid"], why["why"]) == ("bob", "read")


def test_a_server_sets_the_policy_and_is_told_all(web: WebServer, gid: str, msgid: str) -> None:
    server = token("backend", role="server")
    set_ = web.rpc("set_group", bearer=server, gid=gid, receipts="counts", asked_by="members")["result"]
    assert set_ == {"gid": gid, "receipts": "counts", "asked_by": "members"}
    assert error(web.rpc("set_group", bearer=token("ann"), gid=gid, receipts="off")) == "NotAllowed"

    status = web.rpc("status", bearer=token("bob"), gid=gid, msgid=msgid)["result"]
    assert (status["read"], status["unread"], status["read_by"], status["unread_by"]) == (1, 0, None, None)
    assert members(web, gid, "bob")["ann"] == (None, None)
    assert web.rpc("status", bearer=server, gid=gid, msgid=msgid)["result"]["unread_by"] == []
    told = web.rpc("members", bearer=server, gid=gid)["result"]
    assert [member["unread"] for member in told] == [0, 0]

    web.rpc("set_group", bearer=server, gid=gid, receipts="names")
    assert members(web, gid, "bob") == {"ann": (msgid, 0), "bob": (msgid, 0)}
    web.rpc("set_group", bearer=server, gid=gid, receipts="off")
    assert error(web.rpc("status", bearer=token("ann"), gid=gid, msgid=msgid)) == "NotAllowed"


def test_users_choose_for_themselves(web: WebServer, chat: Chat, gid: str, msgid: str) -> None:
    chat.set_group(gid, asked_by="members")
    assert web.rpc("set_user", bearer=token("bob"), receipts="off")["result"] == {"uid": "bob", "receipts": "off"}
    try:
        assert members(web, gid, "bob")["ann"] == (None, None)
        assert web.rpc("status", bearer=token("bob"), gid=gid, msgid=msgid)["result"]["read_by"] is None
        assert error(web.rpc("set_user", bearer=token("ann"), receipts="off", uid="bob")) == "NotAllowed"
        assert web.rpc("set_user", bearer=token("bob"), receipts="maybe")["error"]["code"] == -32602
    finally:
        web.rpc("set_user", bearer=token("backend", role="server"), uid="bob", receipts="on")
    assert chat.user_policy("bob").receipts == "on"
