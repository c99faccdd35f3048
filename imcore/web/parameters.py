"""Parameters of methods: their JSON Schemas, taken from annotations, and the check of what a client gives."""

import inspect
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imcore.web.jsonrpc import INVALID_PARAMS, RpcError

Schema = dict[str, Any]

ReceiptObject = typing.NewType("ReceiptObject", dict[str, Any])
"""A receipt as a client sends it back."""

_COUNT: Schema = {"type": "integer", "minimum": 0}
RECEIPT: Schema = {
    "type": "object",
    "properties": {
        "gid": {"type": "string"},
        "msgid": {"type": "string"},
        "read": _COUNT,
        "unread": _COUNT,
        "delivered": _COUNT,
        "version": _COUNT,
    },
    "required": ["gid", "msgid", "read", "unread", "version"],
    "additionalProperties": False,
}

_PLAIN: dict[object, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    dict[str, Any]: {"type": "object"},
    dict[str, str]: {"type": "object", "additionalProperties": {"type": "string"}},
    list[str]: {"type": "array", "items": {"type": "string"}},
    list[ReceiptObject]: {"type": "array", "items": RECEIPT},
}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method. `default` is None where there is none to tell."""

    name: str
    schema: Schema
    is_required: bool
    default: object


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the keyword-only parameters of a function."""
    hints = typing.get_type_hints(function)
    return tuple(
        Parameter(
            name,
            schema_of(hints[name]),
            parameter.default is inspect.Parameter.empty,
            None if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )


def schema_of(hint: Any) -> Schema:
    """Return the JSON Schema of an annotation. `X | None` is that of X: null counts as left out."""
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:
        [hint] = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) is typing.Literal:
        return {"enum": list(typing.get_args(hint))}
    return _PLAIN[hint]


def arguments(known: tuple[Parameter, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given, without nulls. Raise RpcError for unknown, missing and mistyped parameters."""
    by_name = {parameter.name: parameter for parameter in known}
    if unknown := sorted(given.keys() - by_name):
        raise RpcError(INVALID_PARAMS, f"unknown parameters: {', '.join(map(_shown, unknown))}")
    values = {name: value for name, value in given.items() if value is not None}
    if missing := sorted({parameter.name for parameter in known if parameter.is_required} - values.keys()):
        raise RpcError(INVALID_PARAMS, f"missing parameters: {', '.join(missing)}")
    for name, value in values.items():
        _check(by_name[name].schema, value, name)
    return values


def _check(schema: Schema, value: object, name: str) -> None:
    if "enum" in schema:
        if value not in schema["enum"]:
            raise RpcError(INVALID_PARAMS, f"{name} is one of {', '.join(schema['enum'])}; it is {_shown(value)}")
        return
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        article = "an" if kind[0] in "aio" else "a"
        raise RpcError(INVALID_PARAMS, f"{name} is {article} {kind}; it is {_shown(value)}")
    if isinstance(value, list):
        for item in value:
            _check(schema["items"], item, f"each of {name}")
    elif isinstance(value, dict):
        _check_members(schema, value, name)


def _check_members(schema: Schema, value: Mapping[str, object], name: str) -> None:
    members: Mapping[str, Schema] = schema.get("properties", {})
    if missing := [key for key in schema.get("required", ()) if key not in value]:
        raise RpcError(INVALID_PARAMS, f"{name} has no {missing[0]}")
    others = schema.get("additionalProperties")
    for key, member in value.items():
        if key in members:
            _check(members[key], member, f"{key} of {name}")
        elif others is False:
            raise RpcError(INVALID_PARAMS, f"{name} has an unknown key: {_shown(key)}")
        elif others:
            _check(others, member, f"each of {name}")


def _shown(value: object) -> str:
    return reprlib.repr(value)
