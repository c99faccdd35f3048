"""What `im import` must do with a file of events, on the model: the contract's sentences, one by one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.model.reference import Model

Event = Mapping[str, Any]


def replay(model: Model, events: Iterable[Event], msgids: Mapping[str, Sequence[str]]) -> None:
    """Apply valid events in their order. `msgids` are what the system gave to each group's messages, oldest first."""
    for event in events:
        _apply(model, event, msgids)


def _apply(model: Model, event: Event, msgids: Mapping[str, Sequence[str]]) -> None:
    gid, uid = event["gid"], event.get("uid", "")
    if event["type"] == "message" and model.stored(gid, uid, event["client_msgid"]):
        return
    if gid not in model.groups:
        model.create_group(gid)
    match event["type"]:
        case "message":
            model.add_members(gid, [uid])
            msgid = msgids[gid][model.groups[gid].newest]
            model.send(gid, uid, event["content"], event["client_msgid"], msgid, event.get("meta"))
        case "join":
            model.add_members(gid, [uid])
        case "leave":
            model.remove_members(gid, [uid])
        case "rename":
            model.remove_members(gid, [uid])
            model.add_members(gid, [event["new_uid"]])
        case "ack" | "delivered" | "recall":
            _apply_to_message(model, event, msgids)


def _apply_to_message(model: Model, event: Event, msgids: Mapping[str, Sequence[str]]) -> None:
    gid, uid = event["gid"], event["uid"]
    message = model.groups[gid].with_client_msgid(event["client_msgid"])
    assert message is not None, f"a valid {event['type']} names a message that is there"
    match event["type"]:
        case "ack":
            model.add_members(gid, [uid])
            model.ack(gid, uid, message.msgid)
        case "delivered":
            span = model.groups[gid].current(uid)
            span.arrived = max(span.arrived, message.seq)
        case "recall" if not message.recalled:
            model.recall(gid, message.msgid, uid, msgids[gid][model.groups[gid].newest])
