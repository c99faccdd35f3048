"""The limits of uids, gids, contents, msgids and times. All input from outside is checked here first.

A value of the wrong type is refused like a wrong value: programs pass these on from requests unseen. Each value has one
limit, which is here. Values that the server has handed out pass no narrower limit on their way back.
"""

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeGuard, TypeVar

from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.model.values import Receipt

T = TypeVar("T")

MAX_NAME_BYTES = 128

GROUP_RECEIPTS = ("names", "counts", "off")
ASKED_BY = ("sender", "members")
USER_RECEIPTS = ("on", "off")
"""The choices of a group (members are told names, counts or nothing; who may ask) and of a user (others are told)."""

_BEFORE_THE_FIRST = msgids.unpack(msgids.NONE)

# C0, DEL and C1, and the two separators that end a line: a name with one could move a terminal's cursor. And the unit
# separator (0x1f) joins composed names.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_name(name: str, what: str) -> str:
    """Return `name`, a uid, gid or client_msgid, unchanged. Raise InvalidInput if it cannot be one."""
    size = len(_utf8(name, what))
    if size == 0:
        raise InvalidInput(f"{what} is empty: give 1 to {MAX_NAME_BYTES} bytes")
    if size > MAX_NAME_BYTES:
        raise InvalidInput(f"{what} has {size} bytes: at most {MAX_NAME_BYTES} are allowed")
    if _CONTROL.search(name):
        raise InvalidInput(f"{what} {name!r} has a control character: leave it out")
    return name


def check_handed_over(name: str, what: str) -> str:
    """Return a name unchanged that the server may have handed out: any text. Raise InvalidInput for anything else.

    Programs that call the Redis functions themselves may choose names that `check_name` refuses.
    """
    _utf8(name, what)
    return name


def check_uids(uids: Iterable[str]) -> list[str]:
    """Return the uids, each once, in their order. Raise InvalidInput if one cannot be a uid."""
    if isinstance(uids, str):
        raise InvalidInput("uids are a list: one text would be taken for a uid per letter")
    if not isinstance(uids, Iterable):
        raise InvalidInput(f"uids must be a list of texts; it is {reprlib.repr(uids)}")
    return list(dict.fromkeys(check_name(uid, "uid") for uid in uids))


def check_choice(value: str, choices: Sequence[str], what: str) -> str:
    """Return one of the choices unchanged. Raise InvalidInput for anything else."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidInput(f"{what} must be one of {', '.join(choices)}; it is {reprlib.repr(value)}")
    return value


def check_list(items: Iterable[T], what: str) -> list[T]:
    """Return an iterable as a list. Raise InvalidInput for anything else."""
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise InvalidInput(f"{what} must be a list; it is {reprlib.repr(items)}")
    return list(items)


def check_content(content: str, max_bytes: int) -> str:
    """Return `content` unchanged. Raise InvalidInput if it is empty, too long, not UTF-8 or holds a NUL."""
    size = len(_utf8(content, "content"))
    if size == 0:
        raise InvalidInput("content is empty: write something")
    if size > max_bytes:
        raise InvalidInput(f"content has {size} bytes: at most {max_bytes} are allowed (IM_MAX_CONTENT_BYTES)")
    if "\x00" in content:
        raise InvalidInput("content has a NUL character, which PostgreSQL cannot store: leave it out")
    return content


check_msgid = msgids.pack
"""The limit of msgids is what one can be."""


def check_receipts(receipts: Iterable[Receipt]) -> list[Receipt]:
    """Return receipts unchanged. Raise InvalidInput for a value that is no receipt, or cannot have been handed out."""
    checked = check_list(receipts, "receipts")
    for receipt in checked:
        if not isinstance(receipt, Receipt):
            raise InvalidInput(f"each must be a Receipt; one is {reprlib.repr(receipt)}")
        _check_receipt(receipt)
    return checked


def _check_receipt(receipt: Receipt) -> None:
    check_handed_over(receipt.gid, "gid")
    check_msgid(receipt.msgid)
    for count in (receipt.read, receipt.unread, receipt.delivered, receipt.version):
        if not _is_whole(count) or not 0 <= count <= msgids.HIGHEST:
            raise InvalidInput(f"a receipt of {reprlib.repr(receipt.msgid)} has the count {reprlib.repr(count)}")


def check_resume_points(after: Mapping[str, str] | None) -> dict[str, int]:
    """Return packed msgids by gid. Raise InvalidInput unless these are texts of msgids, by gid."""
    return dict(check_resume_point(gid, msgid) for gid, msgid in check_mapping(after or {}, "after").items())


def check_mapping(mapping: Mapping[str, str], what: str) -> Mapping[str, str]:
    """Return a mapping unchanged. Raise InvalidInput for anything else."""
    if not isinstance(mapping, Mapping):
        raise InvalidInput(f"{what} must be msgids by gid; it is {reprlib.repr(mapping)}")
    return mapping


def check_resume_point(gid: str, msgid: str) -> tuple[str, int]:
    """Return a resume point with its msgid packed; `0-0` is before the first message. Raise InvalidInput."""
    packed = msgids.NONE if msgid == _BEFORE_THE_FIRST else check_msgid(msgid)
    return check_handed_over(gid, "gid"), packed


def check_time(moment: datetime) -> int:
    """Return a client's time in ms since 1970. Raise InvalidInput without a zone, or outside the years 1 to 9999."""
    if not isinstance(moment, datetime):
        raise InvalidInput(f"a time must be a datetime; it is {reprlib.repr(moment)}")
    try:
        ms = msgids.to_ms(moment)
    except ValueError:
        raise InvalidInput(f"the time {moment.isoformat()} has no zone: give one, such as +00:00") from None
    return _in_the_years(ms, moment.isoformat())


def check_time_ms(ms: int) -> int:
    """Return ms since 1970 unchanged. Raise InvalidInput for no whole number, or outside the years 1 to 9999."""
    if not _is_whole(ms):
        raise InvalidInput(f"the time {reprlib.repr(ms)} is no whole number of ms since 1970")
    return _in_the_years(ms, f"{reprlib.repr(ms)} (ms since 1970)")


def _in_the_years(ms: int, said: str) -> int:
    if not msgids.EARLIEST_MS <= ms <= msgids.LATEST_MS:
        raise InvalidInput(f"the time {said} is not between the years 1 and 9999 in UTC")
    return ms


def check_limit(limit: int | None, *, lowest: int = 1) -> int | None:
    """Return a limit unchanged. Raise InvalidInput for no whole number, or below the lowest."""
    return None if limit is None else check_count(limit, "a limit of", lowest=lowest)


def check_count(count: int, what: str, *, lowest: int = 1) -> int:
    """Return a count unchanged. Raise InvalidInput for no whole number, or below the lowest."""
    if not _is_whole(count):
        raise InvalidInput(f"{what} {reprlib.repr(count)} makes no sense: give a whole number")
    if count < lowest:
        raise InvalidInput(f"{what} {reprlib.repr(count)} makes no sense: {lowest} is the lowest")
    return count


def check_seconds(seconds: float, what: str) -> float:
    """Return a time in seconds unchanged; it may be infinite. Raise InvalidInput for no number, or a negative one."""
    if not is_number(seconds) or seconds < 0:
        raise InvalidInput(f"{what} {reprlib.repr(seconds)} makes no sense: give seconds, 0 or more")
    return seconds


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number. Python takes True for 1."""
    return _is_whole(value) or (isinstance(value, float) and not math.isnan(value))


def _is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number. Python takes True for 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def _utf8(text: str, what: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidInput(f"{what} must be a text; it is {reprlib.repr(text)}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} is not valid UTF-8") from None
