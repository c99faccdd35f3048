"""JSON-RPC 2.0 (https://www.jsonrpc.org/specification): texts become requests, results become texts. No I/O.

One object is one text. Batches and parameters by position are refused.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from imcore import errors
from imcore.errors import ImError, NotDurable, TryAgain
from imcore.model.records import iso

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REFUSED = -32000
"""The call was a request and has failed: `data` has the name of the ImError, and whether trying again can help."""

MAX_DEPTH = 32
"""Objects and arrays within each other. `meta` may be deep, all else is flat."""

_REMEMBERED_TEXTS = 1024
_REMEMBERED_BYTES = 256
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OPENING, _CLOSING = b"[{", b"]}"

Id = str | int | float | None


class Request(NamedTuple):
    """One call. A notification has no id, and gets no answer. `params` are shared: nobody changes them."""

    method: str
    params: Mapping[str, Any]
    id: Id
    is_notification: bool


class RpcError(Exception):
    """A text that is no request, or a call that JSON-RPC itself refuses. `id` is None where it is unknown."""

    def __init__(self, code: int, message: str, id: Id = None) -> None:  # noqa: A002 (JSON-RPC's name)
        super().__init__(message)
        self.code = code
        self.id = id


def parse(text: bytes) -> Request:
    """Return the request in a text. Raise RpcError.

    Many sockets send the same ack of a message: short texts are remembered.
    """
    return _parse_short(text) if len(text) <= _REMEMBERED_BYTES else _parse(text)


def result(answer: object, id: Id) -> bytes:  # noqa: A002
    """Return the answer to a call that succeeded."""
    return encode({"jsonrpc": "2.0", "result": answer, "id": id})


def failure(error: RpcError | ImError, id: Id) -> bytes:  # noqa: A002
    """Return the answer to a call that failed."""
    fault: dict[str, object] = {"code": REFUSED, "message": str(error)}
    if isinstance(error, RpcError):
        fault["code"] = error.code
    else:
        stored = {"msgid": error.msgid} if isinstance(error, NotDurable) else {}
        fault["data"] = {"error": public_name(error), "retry": isinstance(error, TryAgain), **stored}
    return encode({"jsonrpc": "2.0", "error": fault, "id": id})


def notification(method: str, params: Mapping[str, object]) -> bytes:
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def public_name(error: ImError) -> str:
    """Return the name in `imcore.errors` of an error's class, or of the nearest class above it that has one."""
    names = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return next(names, ImError.__name__)


def encode(value: object) -> bytes:
    """Return compact JSON as UTF-8. A text that UTF-8 cannot hold is escaped."""
    text = _ENCODER.encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _ASCII_ENCODER.encode(value).encode()


def _time(value: object) -> str:
    if isinstance(value, datetime):
        return iso(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False, default=_time)
_ASCII_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=_time)


def _parse(text: bytes) -> Request:
    value = decode(text)
    if isinstance(value, list):
        raise RpcError(INVALID_REQUEST, "a batch is not taken: send one object at a time")
    if not isinstance(value, dict):
        raise RpcError(INVALID_REQUEST, "a request is an object")
    id_ = _id_of(value)
    if value.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, 'a request has "jsonrpc": "2.0"', id_)
    if not isinstance(value.get("method"), str):
        raise RpcError(INVALID_REQUEST, "a request has a method, which is a text", id_)
    params = value.get("params", {})
    if isinstance(params, list):
        raise RpcError(INVALID_PARAMS, "parameters are given by name, in an object", id_)
    if not isinstance(params, dict):
        raise RpcError(INVALID_REQUEST, "params are an object", id_)
    return Request(value["method"], params, id_, "id" not in value)


_parse_short = lru_cache(maxsize=_REMEMBERED_TEXTS)(_parse)


def decode(text: bytes) -> Any:
    """Return the value of a JSON text. Raise RpcError, also for duplicate keys and deep nesting."""
    try:
        shown = text.decode()
    except UnicodeDecodeError as error:
        raise RpcError(PARSE_ERROR, f"the text is not valid UTF-8 (byte {error.start + 1})") from None
    if _depth(text) > MAX_DEPTH:
        raise RpcError(PARSE_ERROR, f"the text is nested too deeply: at most {MAX_DEPTH} levels are taken")
    try:
        return _DECODER.decode(shown)
    except json.JSONDecodeError as error:
        raise RpcError(PARSE_ERROR, f"the text is not JSON: {error.msg} (character {error.pos + 1})") from None
    except ValueError as error:
        raise RpcError(PARSE_ERROR, f"the text is not JSON that is taken here: {error}") from None


def _depth(text: bytes) -> int:
    """Return how deep a text is nested. Where few brackets are in it, their number is enough."""
    brackets = text.count(b"[") + text.count(b"{")
    if brackets <= MAX_DEPTH:
        return brackets
    depth = deepest = 0
    for byte in _STRING.sub(b"", text):
        if byte in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif byte in _CLOSING:
            depth -= 1
    return deepest


def _id_of(value: Mapping[str, Any]) -> Id:
    id_ = value.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int | float | None):
        raise RpcError(INVALID_REQUEST, "an id is a text, a number or null")
    return id_


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has the same key twice")
    return made


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _whole_number(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number is too long")
    return int(text)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_number, parse_int=_whole_number, parse_constant=_constant
)
