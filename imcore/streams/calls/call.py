"""Calls of Redis functions, as values. No I/O: any client can carry calls.

Each builder in this package names one function of the library in `lua/`, where its keys, arguments and answer are
described.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from imcore import errors
from imcore import msgid as msgids
from imcore.errors import ImError

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Sequence[Any])
T_co = TypeVar("T_co", covariant=True)
Value = str | bytes | int


class Call(NamedTuple, Generic[T_co]):
    """One call of a Redis function; if `function` is empty, `args` are a plain command.

    A call that `writes` loads our functions first where a server has none. `gid` is the group that an error of the
    whole call is about.
    """

    function: str
    keys: tuple[str, ...]
    args: tuple[Value, ...]
    decode: Callable[[Any], T_co]
    gid: str = ""
    writes: bool = False


def command_of(call: Call[Any]) -> tuple[Any, ...]:
    if not call.function:
        return call.args
    return ("FCALL" if call.writes else "FCALL_RO", call.function, len(call.keys), *call.keys, *call.args)


class EntryPage(NamedTuple, Generic[T]):
    """Entries of a stream: about 1 MiB at most, but one in any case. With `more`, others may follow."""

    entries: list[T]
    more: bool


def all_entries(page_from: Callable[[str], tuple[Sequence[Entry], bool]], first: str = "-") -> Iterator[Entry]:
    """Yield the entries of a stream from `first` on (an id as XRANGE takes it), which begin with the id.

    `page_from` returns the page that begins at an id, and whether others may come after it.
    """
    more = True
    while more:
        page, more = page_from(first)
        yield from page
        if page:
            first = f"({page[-1][0].decode()}"


class Trimmed(errors.UnknownMessage):
    """That message is no longer in Redis: SQL has it."""


ERRORS: Mapping[bytes, tuple[type[ImError], str]] = {
    b"NOGROUP": (errors.UnknownGroup, "there is no group {gid!r}"),
    b"ERASING": (
        errors.UserErasing,
        "a user of that name is being erased: try again when `im user erase` has ended",
    ),
    b"ERASED": (errors.TryAgain, "another process has ended this erasure, which is done"),
    b"ENDED": (errors.SessionExpired, "the user of this session was erased"),
    b"CREATING": (errors.GroupUnderWay, "another process creates group {gid!r}: try again in a moment"),
    b"DELETING": (errors.GroupUnderWay, "group {gid!r} is being deleted: try again in a moment"),
    b"ABANDONED": (errors.GroupAbandoned, "a process has died over the creation of group {gid!r}: create it again"),
    b"LOST": (errors.TryAgain, "another process mends {gid!r}"),
    b"CLOCK": (errors.ConfigurationError, "the clock of {where} stands before 2020: set it"),
    b"NOTMEMBER": (errors.NotMember, "{uid!r} is not a member of {gid!r}"),
    b"NOTSENDER": (errors.NotSender, "{msgid} of {gid!r} is not by {uid!r}"),
    b"TOMBSTONE": (errors.InvalidInput, "{msgid} of {gid!r} is itself the recall of a message"),
    b"UNSEEN": (errors.UnknownMessage, "{msgid} of {gid!r} is from before {uid!r} joined"),
    b"TOOOLD": (errors.InvalidInput, "{msgid} is not among the newest 100 messages of {gid!r}: mark one of these"),
    b"FUTURE": (errors.UnknownMessage, "{msgid} has not been issued yet in {gid!r}"),
    b"TRIMMED": (Trimmed, "{msgid} of {gid!r} is no longer in Redis"),
    b"NOMSG": (errors.UnknownMessage, "{msgid} is not a message of {gid!r}"),
}
"""The errors of whole calls, by their first word, and those of items, by the code in their place."""


def error_of(code: bytes, gid: str, *, uid: str = "", msgid: int | None = None, where: str = "") -> ImError:
    kind, text = ERRORS[code]
    message = msgids.unpack(msgid) if msgid else "that message"
    return kind(text.format(gid=gid, uid=uid, msgid=message, where=where))


def checked(answer: Any, gid: str, *, uid: str = "", msgid: int | None = None) -> Any:
    """Return an answer unchanged; raise the error if it is a code."""
    if isinstance(answer, bytes):
        raise error_of(answer, gid, uid=uid, msgid=msgid)
    return answer


def flat(rows: Iterable[tuple[Any, ...]]) -> tuple[Value, ...]:
    """Return the values of all rows in turn."""
    return tuple(chain.from_iterable(rows))


def or_empty(number: int | None) -> Value:
    return "" if number is None else number
