"""What every call of a Redis function is. No I/O: any client can carry calls.

Each builder in this package names one function of the library in `lua/`, where its keys, arguments and answer are
described.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from imcore import msgid as msgids
from imcore.errors import ImError, InvalidInput, NotMember, NotSender, UnknownMessage

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Value = str | bytes | int


class Call(NamedTuple, Generic[T_co]):
    """One call of a Redis function; if `function` is empty, `args` are a plain command that only reads.

    `gid` is the group that an error of the whole call is about.
    """

    function: str
    keys: tuple[str, ...]
    args: tuple[Value, ...]
    decode: Callable[[Any], T_co]
    gid: str = ""
    writes: bool = False


def command_of(call: Call[Any]) -> tuple[Any, ...]:
    """Return a call as the command that is sent."""
    if not call.function:
        return call.args
    return ("FCALL" if call.writes else "FCALL_RO", call.function, len(call.keys), *call.keys, *call.args)


class EntryPage(NamedTuple, Generic[T]):
    """Entries of a stream: about 1 MiB at most, but one in any case. With `more`, others may follow."""

    entries: list[T]
    more: bool


class Trimmed(UnknownMessage):
    """That message is no longer in Redis: SQL has it."""


def error_of(code: bytes, gid: str, *, uid: str = "", msgid: int | None = None) -> ImError:
    """Return the error of an item's code."""
    text = msgids.unpack(msgid) if msgid else "that message"
    match code:
        case b"NOTMEMBER":
            return NotMember(f"{uid!r} is not a member of {gid!r}")
        case b"NOTSENDER":
            return NotSender(f"{text} of {gid!r} is not by {uid!r}")
        case b"TOMBSTONE":
            return InvalidInput(f"{text} of {gid!r} is itself the recall of a message")
        case b"FUTURE":
            return UnknownMessage(f"{text} has not been issued yet in {gid!r}")
        case b"TRIMMED":
            return Trimmed(f"{text} of {gid!r} is no longer in Redis")
        case b"NOMSG":
            return UnknownMessage(f"{text} is not a message of {gid!r}")
    raise AssertionError(f"unknown code {code!r}")


def checked(answer: Any, gid: str, *, uid: str = "", msgid: int | None = None) -> Any:
    """Return an answer unchanged; raise the error if it is a code."""
    if isinstance(answer, bytes):
        raise error_of(answer, gid, uid=uid, msgid=msgid)
    return answer


def or_empty(number: int | None) -> Value:
    return "" if number is None else number
