"""The OpenRPC document is what the server does: parameters, results, notifications, the server's methods."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema
import pytest

from imcore import Chat
from imcore.model.values import Receipt
from tests.helpers.deadline import wait_until
from tests.helpers.gateways import kill_connections
from tests.helpers.lost_messages import after, process, push
from tests.helpers.web import token
from tests.helpers.web_server import WebClient, WebServer
from tests.helpers.workers import deliver_receipts

Document = Mapping[str, Any]


@pytest.fixture(scope="module")
def document(web: WebServer) -> Document:
    made: Document = json.loads(web.get("/openrpc.json")[2])
    return made


def check(document: Document, schema: Mapping[str, Any], value: object) -> None:
    """Fail unless the value is as the schema says, which may refer to others of the document."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def method_of(document: Document, name: str) -> Mapping[str, Any]:
    [method] = [method for method in document["methods"] if method["name"] == name]
    return method


def test_every_schema_is_valid_and_used(document: Document) -> None:
    text = json.dumps(document)
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert f"#/components/schemas/{name}" in text


def examples(gid: str, msgid: str) -> dict[str, dict[str, object]]:
    """Parameters for each method of a user, all of those that may be given at once."""
    receipt = {"gid": gid, "msgid": msgid, "read": 0, "unread": 1, "delivered": 0, "version": 1}
    return {
        "send": {"gid": gid, "content": "x", "client_msgid": "c", "meta": {"a": 1}},
        "send_direct": {"to": "bob", "content": "x", "client_msgid": "d", "meta": {"a": 1}},
        "ack": {"gid": gid, "msgid": msgid, "private": True},
        "delivered": {"gid": gid, "msgid": msgid},
        "mark_unread": {"gid": gid, "msgid": msgid},
        "unmark": {"gid": gid},
        "unread": {},
        "inbox": {"limit": 5, "after": f"{msgid}:", "unread_only": True},
        "receipts": {"limit": 5},
        "confirm_receipts": {"receipts": [receipt]},
        "groups": {},
        "group": {"gid": gid},
        "pull": {"gid": gid, "limit": 5},
        "history": {"gid": gid, "around": msgid, "limit": 5},
        "status": {"gid": gid, "msgid": msgid},
        "tallies": {"gid": gid, "msgids": [msgid]},
        "why": {"gid": gid, "msgid": msgid, "of": "bob"},
        "set_group": {"gid": gid, "receipts": "names", "asked_by": "sender"},
        "set_user": {"receipts": "on"},
        "members": {"gid": gid, "uids": ["ann"]},
        "online": {"gid": gid, "uids": ["ann"]},
        "recall": {"gid": gid, "msgid": msgid},
        "create_group": {"gid": "of openrpc", "uids": ["ann"]},
        "add_members": {"gid": "of openrpc", "uids": ["bob"]},
        "remove_members": {"gid": "of openrpc", "uids": ["bob"]},
        "delete_group": {"gid": "of openrpc"},
        "erase_user": {"uid": "of openrpc"},
    }


def test_each_method_takes_its_parameters_and_answers_as_the_document_says(
    web: WebServer, chat: Chat, gid: str, document: Document
) -> None:
    msgid = chat.send(gid, "mine", sender_uid="ann").msgid
    chat.send(gid, "not acked", sender_uid="bob")
    calls = examples(gid, msgid)
    assert {method["name"] for method in document["methods"]} == {"connect", *calls}
    for name, params in calls.items():
        method = method_of(document, name)
        is_for_servers = "tags" in method
        bearer = token("ann", role="server" if is_for_servers else None)
        answer = web.rpc(name, bearer=bearer, **params)
        assert "result" in answer, (name, answer)
        check(document, method["result"]["schema"], answer["result"])
        assert answer["result"] != [] or name in {"online", "receipts"}, name
        known = {parameter["name"]: parameter for parameter in method["params"]}
        for parameter in params:
            check(document, known[parameter]["schema"], params[parameter])
        # The required ones are required, and no other one is taken.
        for parameter in (each for each in known.values() if each["required"]):
            less = {key: value for key, value in params.items() if key != parameter["name"]}
            assert web.rpc(name, bearer=bearer, **less)["error"]["code"] == -32602
        assert web.rpc(name, bearer=bearer, **params, colour="red")["error"]["code"] == -32602
        if is_for_servers:
            assert web.rpc(name, **params)["error"]["data"]["error"] == "NotAllowed"


@pytest.mark.parametrize("without", ["msgid", "uids", "around"])
def test_other_forms_of_answers_are_in_the_document_too(
    web: WebServer, chat: Chat, gid: str, document: Document, without: str
) -> None:
    msgid = chat.send(gid, "mine", sender_uid="ann").msgid
    needed = {"recall", "delivered", "mark_unread", "add_members", "remove_members", "create_group", "why"}
    for name, params in examples(gid, msgid).items():
        if without in params and name not in needed:
            less = {key: value for key, value in params.items() if key != without}
            check(document, method_of(document, name)["result"]["schema"], web.rpc(name, **less)["result"])


def test_each_notification_is_as_the_document_says(web: WebServer, chat: Chat, gid: str, document: Document) -> None:
    known = {each["name"]: each["params"] for each in document["x-notifications"]}

    async def story() -> None:
        async with WebClient(web.url, "ann") as ann:
            for number in range(5):
                chat.send(gid, str(number), sender_uid="bob")
            msgid = chat.send(gid, "mine", sender_uid="ann").msgid
            connected = await ann.call("connect", token=token("ann", ttl_s=20), most=2)
            check(document, method_of(document, "connect")["result"]["schema"], connected)
            chat.create_group(f"{gid} too", ["ann"])
            await ann.until(lambda: ann.notices("joined") and ann.contents(gid) == ["4", "mine"])
            chat.remove_members(f"{gid} too", ["ann"])
            chat.ack("bob", gid, msgid)
            chat.ack("ann", gid, msgid)
            deliver_receipts(chat)
            # A message that the server loses, as a failover may lose it
            push(chat, after(chat.history("ann", gid).messages[-1], "lost"), process(chat))
            await ann.until(lambda: "lost" in ann.contents(gid))
            kill_connections(chat.system.client.driver, "pubsub")
            await ann.until(lambda: {each["method"] for each in ann.told} == known.keys() or ann.closed, timeout_s=60)
            assert {each["method"] for each in ann.told} == known.keys()
            for each in ann.told:
                check(document, known[each["method"]], each["params"])

    asyncio.run(story())


def test_receipts_come_again_until_they_are_confirmed(web: WebServer, chat: Chat, gid: str) -> None:
    async def story() -> None:
        msgid = chat.send(gid, "read me", sender_uid="ann").msgid
        chat.ack("bob", gid, msgid)
        deliver_receipts(chat)
        for _ in range(2):
            async with WebClient(web.url, "ann") as ann:
                await ann.connect(start="live")
                await ann.until(lambda: _of(ann, gid))
                [receipt] = _of(ann, gid)
                assert (receipt["msgid"], receipt["read"], receipt["unread"]) == (msgid, 1, 0)
        async with WebClient(web.url, "ann") as ann:
            await ann.connect(start="live")
            await ann.until(lambda: _of(ann, gid))
            await ann.notify("confirm_receipts", receipts=_of(ann, gid))
            waiting: Callable[[], list[Receipt]] = lambda: [r for r in chat.receipts("ann") if r.gid == gid]  # noqa: E731
            await asyncio.to_thread(wait_until, lambda: not waiting())

    asyncio.run(story())


def _of(client: WebClient, gid: str) -> list[dict[str, Any]]:
    return [each for notice in client.notices("receipts") for each in notice["receipts"] if each["gid"] == gid]
