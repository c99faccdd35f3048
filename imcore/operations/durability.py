"""Lets a send wait until its message is replicated or on disk: see `imcore.streams.durability`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput, NotDurable
from imcore.model.durable import Durable
from imcore.model.values import Message
from imcore.operations.effects import Effect, Effects
from imcore.settings import Settings
from imcore.streams.durability import Outcome


@dataclass(frozen=True, slots=True)
class RequireDurable(Effect[None]):
    """Require that the server of a group can confirm messages in this way. It raises an ImError if it cannot."""

    kind: Durable
    gid: str


@dataclass(frozen=True, slots=True)
class ConfirmDurable(Effect[Outcome]):
    """Wait until messages of a group (packed) are confirmed."""

    kind: Durable
    gid: str
    msgids: Sequence[int]


def kind_of(durable: Durable | None, settings: Settings) -> Durable:
    """Return what a send waits for: what the call says, else the settings. Raise InvalidInput."""
    kind = settings.durable if durable is None else durable
    if kind not in get_args(Durable):
        raise InvalidInput(f"durable must be none, replicated or fsynced; it is {kind!r}")
    return kind


def require(kind: Durable, gid: str) -> Effects[None]:
    """Refuse a send before it is made, if the server cannot confirm it."""
    if kind != "none":
        yield from RequireDurable(kind, gid)


def confirm(kind: Durable, gid: str, messages: list[Message | ImError]) -> Effects[list[Message | ImError]]:
    """Wait until all stored messages are confirmed. A message that is not has NotDurable in its place."""
    if kind == "none":
        return messages
    stored = [msgids.pack(message.msgid) for message in messages if isinstance(message, Message)]
    if not stored:
        return messages
    outcome = iter((yield from ConfirmDurable(kind, gid, stored)))
    return [_checked(kind, message, next(outcome)) if isinstance(message, Message) else message for message in messages]


def _checked(kind: Durable, message: Message, reason: str) -> Message | ImError:
    if not reason:
        return message
    return NotDurable(
        f"{message.msgid} of {message.gid!r} was stored, but it is not certain that it is {kind}: {reason}; send it "
        "again with the same client_msgid",
        msgid=message.msgid,
    )
