"""Events: the lines of an import, parsed and checked."""

import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from imcore.errors import InvalidInput
from imcore.importer.formats import json_object
from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS, check_choice, check_content, check_name, check_time
from imcore.model.meta import check_meta

_NAMES = {
    "message": ("gid", "uid", "client_msgid"),
    "join": ("gid", "uid"),
    "leave": ("gid", "uid"),
    "rename": ("gid", "uid", "new_uid"),
    "ack": ("gid", "uid", "client_msgid"),
    "delivered": ("gid", "uid", "client_msgid"),
    "mark": ("gid", "uid", "client_msgid"),
    "recall": ("gid", "uid", "client_msgid"),
    "group": ("gid",),
}
"""The types of events, and the names that each needs. `_OTHER_FIELDS` reads what else a type may have."""

_YEAR = re.compile(r"([+-]?)0*([0-9]*)(?<=[0-9]{4})-[0-9]{2}", re.ASCII)
"""Years of ISO 8601 beyond those that Python reads: with a sign, or with more than four digits."""


@dataclass(frozen=True, slots=True)
class Event:
    """One valid event. A field that its type does not have is empty.

    A message that is `recalled` may have no content. An ack `of_recall` names the recall of a message. A `private` one
    is for the user alone. A group may have a policy, in part.
    """

    type: str
    gid: str
    uid: str = ""
    new_uid: str = ""
    client_msgid: str = ""
    content: str = ""
    sent_at_ms: int | None = None
    meta: dict[str, Any] | None = None
    of_recall: bool = False
    private: bool = False
    receipts: str | None = None
    asked_by: str | None = None


def parse(line: bytes, *, max_content_bytes: int) -> Event:
    """Return the event of a line. Raise InvalidInput for a line that is not a valid event."""
    fields = json_object(line)
    type_ = fields.get("type")
    if not isinstance(type_, str) or type_ not in _NAMES:
        raise InvalidInput(f"type must be one of {', '.join(_NAMES)}; it is {reprlib.repr(type_)}")
    event: dict[str, Any] = {name: check_name(_text(fields, name), name) for name in _NAMES[type_]}
    if read := _OTHER_FIELDS.get(type_):
        event |= read(fields, max_content_bytes, len(line))
    return Event(type_, **event)


def _of_message(fields: dict[str, Any], max_content_bytes: int, max_meta_bytes: int) -> dict[str, Any]:
    is_gone = fields.get("recalled") is True and fields.get("content", "") == ""
    return {
        "content": "" if is_gone else check_content(_text(fields, "content"), max_content_bytes),
        "sent_at_ms": _time_ms(fields.get("time")),
        "meta": check_meta(fields.get("meta"), max_meta_bytes),
    }


def _of_ack(fields: dict[str, Any], _content_bytes: int, _meta_bytes: int) -> dict[str, Any]:
    return {"of_recall": _flag(fields, "recall"), "private": _flag(fields, "private")}


def _of_delivered(fields: dict[str, Any], _content_bytes: int, _meta_bytes: int) -> dict[str, Any]:
    return {"of_recall": _flag(fields, "recall")}


def _of_group(fields: dict[str, Any], _content_bytes: int, _meta_bytes: int) -> dict[str, Any]:
    choices = {"receipts": GROUP_RECEIPTS, "asked_by": ASKED_BY}
    return {name: check_choice(fields[name], choices[name], name) for name in choices if name in fields}


_OTHER_FIELDS: Mapping[str, Callable[[dict[str, Any], int, int], dict[str, Any]]] = {
    "message": _of_message,
    "ack": _of_ack,
    "delivered": _of_delivered,
    "group": _of_group,
}
"""By type: reads the fields besides names, given the most bytes of a content and of a meta."""


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be true or false; it is {reprlib.repr(value)}")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise InvalidInput(f"{name} is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a text; it is {reprlib.repr(value)}")
    return value


def _time_ms(value: Any) -> int | None:
    """Return the sender's time in ms since 1970. A time without a zone is in UTC."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInput(f"time must be ISO 8601; it is {reprlib.repr(value)}")
    # RFC 3339 allows the zone `z`, Python reads `Z` alone.
    text = f"{value[:-1]}Z" if value.endswith("z") else value
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(_why_no_time(value, str(error))) from None
    return check_time(time if time.tzinfo else time.replace(tzinfo=UTC))


def _why_no_time(value: str, why: str) -> str:
    shown = reprlib.repr(value)
    if (year := _YEAR.match(value)) and (year[1] == "-" or not 1 <= len(year[2]) <= 4):
        return f"the time {shown} is not between the years 1 and 9999 in UTC"
    if not why.startswith("Invalid isoformat"):
        return f"the time {shown} cannot be read: {why}"  # for instance, February 30
    return f"time must be ISO 8601; it is {shown}"
