"""The protocol for machines: an OpenRPC document (https://spec.open-rpc.org), made from the methods themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS, USER_RECEIPTS
from imcore.operations.why import WORDS
from imcore.web.jsonrpc import REFUSED
from imcore.web.method import Method, list_of, ref
from imcore.web.methods import MESSAGE
from imcore.web.parameters import RECEIPT, Parameter, Schema

VERSION = "1.0.0"

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time", "description": "UTC, ISO 8601 with milliseconds"}
_TEXTS = list_of(_TEXT)
_PARTITIONS: Schema = {**list_of(_COUNT), "description": "partitions of a cluster whose node does not answer"}


def _or_null(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


def _one_of(words: Sequence[str]) -> Schema:
    return {"enum": list(words)}


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


_MESSAGE: dict[str, Schema] = {
    "gid": _TEXT,
    "msgid": _TEXT,
    "seq": {"type": "integer", "minimum": 1},
    "sender_uid": _TEXT,
    "time": _TIME,
    "content": _TEXT,
    "client_msgid": _or_null(_TEXT),
}
_IF_SET: dict[str, Schema] = {
    "recalled": {"const": True},
    "recalls": {"type": "string", "description": "the msgid of the message that this tombstone recalls"},
    "meta": {"type": "object"},
}
_TALLY: dict[str, Schema] = {"read": _COUNT, "unread": _COUNT, "delivered": _COUNT}
_POSITION: dict[str, Schema] = {"gid": _TEXT, "last_ack_msgid": _or_null(_TEXT), "unread": _COUNT}

SCHEMAS: dict[str, Schema] = {
    "Message": _object(_MESSAGE, _IF_SET),
    "SentMessage": _object({**_MESSAGE, "recipients": _or_null(_COUNT)}, _IF_SET),
    "MessageTally": _object({**_MESSAGE, **_TALLY}, _IF_SET),
    "MessageStatus": _object(
        {
            **_MESSAGE,
            **_TALLY,
            "read_by": _or_null(list_of(_object({"uid": _TEXT, "read_at": _or_null(_TIME)}))),
            "unread_by": _or_null(_TEXTS),
            "delivered_to": _or_null(_TEXTS),
        },
        _IF_SET,
    ),
    "Tally": _object({"gid": _TEXT, "msgid": _TEXT, **_TALLY}),
    "Receipt": RECEIPT,
    "Unread": _object({"gid": _TEXT, "unread": _COUNT}),
    "InboxEntry": _object(
        {
            "gid": _TEXT,
            "unread": _COUNT,
            "marked": _FLAG,
            "first_unread_msgid": _or_null(_TEXT),
            "msgid": _or_null(_TEXT),
            "sender_uid": _or_null(_TEXT),
            "time": _or_null(_TIME),
            "content": _or_null(_TEXT),
        }
    ),
    "Silent": _object({"silent": _PARTITIONS}),
    "InboxTotals": _object(
        {
            "groups": _COUNT,
            "unread_groups": _COUNT,
            "unread": _COUNT,
            "next": _or_null(_TEXT),
        },
        {"silent": _PARTITIONS},
    ),
    "Ack": _object({"gid": _TEXT, "uid": _TEXT, "last_ack_msgid": _or_null(_TEXT), "advanced": _FLAG}),
    "Delivery": _object(
        {
            **dict.fromkeys(("gid", "uid"), _TEXT),
            **dict.fromkeys(("last_delivered_msgid", "last_ack_msgid"), _or_null(_TEXT)),
            "advanced": _FLAG,
        }
    ),
    "Marked": _object({"gid": _TEXT, "uid": _TEXT, "unread": _COUNT}),
    "Group": _object({"gid": _TEXT, "members": _COUNT, "messages": _COUNT, "last_msgid": _or_null(_TEXT)}),
    "GroupSize": _object({"gid": _TEXT, "members": _COUNT}),
    "DeletedGroup": _object({"gid": _TEXT, "messages": _COUNT}),
    "Member": _object({**_POSITION, "unread": _or_null(_COUNT), "uid": _TEXT, "online": _FLAG}),
    "GroupPolicy": _object({"gid": _TEXT, "receipts": _one_of(GROUP_RECEIPTS), "asked_by": _one_of(ASKED_BY)}),
    "UserPolicy": _object({"uid": _TEXT, "receipts": _one_of(USER_RECEIPTS)}),
    "Why": _object({"gid": _TEXT, "msgid": _TEXT, "uid": _TEXT, "why": _one_of(WORDS), "since": _or_null(_TIME)}),
    "HistoryPage": _object({"messages": list_of(MESSAGE), "older": _FLAG, "newer": _FLAG}),
    "Connected": _object(
        {
            "uid": _TEXT,
            "dataset": _or_null(_TEXT),
            "groups": list_of(
                _object(
                    {
                        **_POSITION,
                        "last_msgid": _or_null(_TEXT),
                        "after": _or_null(_TEXT),
                        "last_erasure": _or_null(_TEXT),
                    }
                )
            ),
            "silent": _PARTITIONS,
        },
    ),
    "Confirmed": _object({"confirmed": _COUNT}),
    "ErasedUser": _object({"uid": _TEXT, "messages": _COUNT}),
}

NOTIFICATIONS: dict[str, tuple[str, Schema]] = {
    "message": ("A message, in the order of its group.", MESSAGE),
    "receipts": (
        "Tallies of the user's own messages that have changed; confirm them with `confirm_receipts`.",
        _object({"receipts": list_of(ref("Receipt"))}),
    ),
    "position": (
        "Another device of the user has read a group, or marked messages there: `unread` has the count.",
        _object({"gid": _TEXT, "last_ack_msgid": _or_null(_TEXT)}),
    ),
    "gap": (
        "The first and the last message that were left out here; `history` has them.",
        _object({"gid": _TEXT, "from_msgid": _TEXT, "to_msgid": _TEXT}),
    ),
    "rewound": (
        "No server has what came after this message: forget it. What the servers have after it comes again.",
        _object({"gid": _TEXT, "after_msgid": _or_null(_TEXT)}),
    ),
    "joined": ("The user was added to a group.", _object({"gid": _TEXT})),
    "left": ("The user has left a group.", _object({"gid": _TEXT})),
    "expiring": ("The token ends soon: `connect` with a new one.", _object({"expires_in_s": _COUNT})),
}
"""By name: what it says, and its parameters."""

_ERROR = {
    "code": REFUSED,
    "message": "The call was refused, and has changed nothing; data has the name of the error in imcore.errors.",
    "data": {"error": "NotMember", "retry": False},
}


def document(methods: Mapping[str, Method]) -> dict[str, Any]:
    """Return the document of these methods."""
    return {
        "openrpc": "1.3.2",
        "info": {
            "title": "imcore",
            "version": VERSION,
            "description": "Messages and exact read receipts. One JSON object is one text frame on /ws, or the body of "
            "a POST to /rpc. Parameters are given by name. Batches are not taken.",
        },
        "methods": [_method(method) for method in methods.values()],
        "components": {"schemas": SCHEMAS, "errors": {"Refused": _ERROR}},
        "x-notifications": [
            {"name": name, "summary": summary, "params": schema} for name, (summary, schema) in NOTIFICATIONS.items()
        ],
    }


def _method(method: Method) -> dict[str, Any]:
    summary, _, rest = method.summary.partition("\n\n")
    made = {
        "name": method.name,
        "summary": summary,
        "paramStructure": "by-name",
        "params": [_parameter(parameter) for parameter in method.parameters],
        "result": {"name": "result", "schema": method.result},
        "errors": [{"$ref": "#/components/errors/Refused"}],
    }
    if rest:
        made["description"] = rest
    if method.is_server_only:
        made["tags"] = [{"name": "server", "description": "for a server's token only"}]
    return made


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = parameter.schema if parameter.default is None else {**parameter.schema, "default": parameter.default}
    return {"name": parameter.name, "required": parameter.is_required, "schema": schema}
