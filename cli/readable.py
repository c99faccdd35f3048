"""What people see of a record: names that cannot be mistaken, times, and one-to-one chats by the other's name."""

from collections.abc import Callable
from datetime import datetime

from imcore.cli import names
from imcore.cli.output import Record

NAMES = {"gid", "uid", "sender_uid", "client_msgid", "online"}
"""The keys whose texts are names."""

SENTENCES = {"state", "what", "redis", "sql", "reason"}
"""The keys whose texts may quote names."""

Time = Callable[[datetime], str]
"""How a time is written."""


def readable(record: Record, time: Time) -> Record:
    """Return an object as a table shows it. What has no content says why."""
    seen = {key: _seen(key, value, time) for key, value in record.items()}
    if record.get("peer") is not None:
        seen["gid"] = names.direct(str(record["peer"]))
    if record.get("recalls"):
        seen["content"] = f"(recalls {record['recalls']})"
    elif record.get("recalled"):
        seen["content"] = "(recalled)"
    return seen


def _seen(key: str, value: object, time: Time) -> object:
    if isinstance(value, datetime):
        return time(value)
    if key in NAMES and isinstance(value, str):
        return names.name(value) or None  # a difference may be about no group
    return names.in_sentence(value) if key in SENTENCES and isinstance(value, str) else value
