"""Metas: small JSON objects beside the texts of messages. They are opaque: nothing here reads meaning into one.

A meta is stored as compact JSON. The order of its keys is not promised.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from imcore.errors import InvalidInput

Meta = Mapping[str, Any]

DEEPEST = 16
"""The most objects and lists within each other, the meta itself included."""

_IN_STEP = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def check_meta(meta: Meta | None, max_bytes: int) -> dict[str, Any] | None:
    """Return `copy_of` a meta. Raise InvalidInput if it is no JSON object, or too long."""
    if meta is None:
        return None
    copy = copy_of(meta)
    size = len(to_text(copy).encode())
    if size > max_bytes:
        raise InvalidInput(f"meta has {size} bytes as JSON: at most {max_bytes} are allowed (IM_MAX_META_BYTES)")
    return copy


def to_text(meta: Meta) -> str:
    """Return a checked meta as compact JSON."""
    return _IN_STEP.encode(meta)


def size_of(meta: Meta | None) -> int:
    """Return about how many characters a checked meta has as JSON."""
    return 0 if meta is None else len(to_text(meta))


def from_text(text: str) -> dict[str, Any]:
    """Return the meta of a JSON text. Raise InvalidInput for any other text, and for an object with a key twice."""
    try:
        value = json.loads(text, object_pairs_hook=_with_single_keys)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"meta is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        raise InvalidInput(f"meta is not JSON: {error}") from None
    return copy_of(value)


def _with_single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise InvalidInput("meta has a key twice in one object: give each once")
    return keys


def copy_of(value: object) -> dict[str, Any]:
    """Return a copy of a meta, with lists for tuples. Raise InvalidInput if it is no JSON object."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"meta must be a JSON object; it is {reprlib.repr(value)}")
    copy: dict[str, Any] = _copy(value, 1)
    try:
        to_text(copy).encode()
    except UnicodeEncodeError:
        raise InvalidInput("meta is not valid UTF-8") from None
    except ValueError as error:  # a number of thousands of digits
        raise InvalidInput(f"meta is not JSON: {error}") from None
    return copy


def _copy(value: object, depth: int) -> Any:
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise InvalidInput(f"meta holds {reprlib.repr(value)}, which JSON cannot say")
    if depth > DEEPEST:
        raise InvalidInput(f"meta is nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        return {_key(key): _copy(each, depth + 1) for key, each in value.items()}
    return [_copy(each, depth + 1) for each in value]


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidInput(f"meta has the key {reprlib.repr(key)}: keys must be texts")
    return key
