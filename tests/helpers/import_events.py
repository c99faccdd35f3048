"""What tests of imports share: events, and running an import of them."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from imcore import Chat
from imcore.importer.formats import Line
from imcore.importer.importer import import_events

HELLO = {
    "type": "message",
    "time": "2004-12-25T09:14:00Z",
    "gid": "#g",
    "uid": "ann",
    "content": "hi",
    "client_msgid": "1",
}
BY_BOB = HELLO | {"uid": "bob", "client_msgid": "2"}


def run(chat: Chat, *events: dict[str, Any] | bytes) -> dict[str, int]:
    """Import valid events; return what of the summary is not 0."""
    summary, errors = run_with_errors(chat, lines(events))
    assert errors == []
    return summary


def run_with_errors(chat: Chat, given: Iterable[Line]) -> tuple[dict[str, int], list[tuple[int, str]]]:
    errors: list[tuple[int, str]] = []
    summary = import_events(chat, given, on_error=lambda number, reason: errors.append((number, reason)))
    return {name: count for name, count in asdict(summary).items() if count}, errors


def lines(events: Iterable[dict[str, Any] | bytes]) -> list[bytes]:
    return [event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n" for event in events]


def event(type_: str, uid: str, **more: str) -> dict[str, Any]:
    return {"type": type_, "gid": "#g", "uid": uid, **more}


INVALID = {
    b"no json\n": "the line is not JSON: Expecting value at character 1",
    b"[1, 2]\n": "the line is not a JSON object",
    b'"\xff"\n': "the line is not valid UTF-8",
    b"[" * 100_000: "the line is not JSON: maximum recursion depth",
    b'{"type": ' + b"1" * 5_000 + b"}": "the line is not JSON: ",
    b"{}": "type must be one of message, join, leave, rename, ack, delivered, mark, recall, group; it is None",
    b'{"type": []}': "type must be one of",
    b'{"type": "message", "gid": "#g", "uid": "ann", "client_msgid": "1"}': "content is missing",
    json.dumps(HELLO | {"content": ""}).encode(): "content is empty",
    json.dumps(HELLO | {"content": "\ud800"}).encode(): "content is not valid UTF-8",
    json.dumps(HELLO | {"content": "x" * 65_537}).encode(): "content has 65537 bytes",
    json.dumps(HELLO | {"content": 7}).encode(): "content must be a text; it is 7",
    json.dumps(HELLO | {"client_msgid": 1}).encode(): "client_msgid must be a text; it is 1",
    json.dumps(HELLO | {"client_msgid": None}).encode(): "client_msgid must be a text; it is None",
    json.dumps(HELLO | {"time": "yesterday"}).encode(): "time must be ISO 8601; it is 'yesterday'",
    json.dumps(HELLO | {"time": 7}).encode(): "time must be ISO 8601; it is 7",
    json.dumps(HELLO | {"time": "0001-01-01T00:00:00+14:00"}).encode(): (
        "the time 0001-01-01T00:00:00+14:00 is not between the years 1 and 9999 in UTC"
    ),
    json.dumps(HELLO | {"time": "10000-01-01T00:00:00Z"}).encode(): (
        "the time '10000-01-01T00:00:00Z' is not between the years 1 and 9999 in UTC"
    ),
    json.dumps(HELLO | {"time": "0000-12-31T00:00:00Z"}).encode(): "the time '0000-12-31T00:00:00Z' is not between",
    json.dumps(HELLO | {"time": "-0044-03-15"}).encode(): "the time '-0044-03-15' is not between the years 1 and 9999",
    json.dumps(HELLO | {"time": "2016-12-31T23:59:60Z"}).encode(): (
        "the time '2016-12-31T23:59:60Z' cannot be read: second must be in 0..59"
    ),
    json.dumps(HELLO | {"time": "2026-02-30"}).encode(): "the time '2026-02-30' cannot be read: day is out of range",
    json.dumps(HELLO | {"uid": "a\nb"}).encode(): "uid 'a\\nb' has a control character",
    json.dumps(event("join", "x" * 129)).encode(): "uid has 129 bytes",
    json.dumps(event("join", "ann") | {"gid": ""}).encode(): "gid is empty",
    json.dumps(event("rename", "ann")).encode(): "new_uid is missing",
    json.dumps(event("rename", "ann", new_uid="")).encode(): "new_uid is empty",
    json.dumps(event("ack", "ann")).encode(): "client_msgid is missing",
    json.dumps(event("ack", "ann", client_msgid="7")).encode(): "no message of '#g' has the client_msgid '7'",
}
