"""One-to-one chats: groups of two (of one, for writing to oneself) whose gid follows from the two uids."""

import hashlib
import secrets
from collections.abc import Iterable

from imcore.errors import InvalidInput
from imcore.model.limits import MAX_NAME_BYTES, check_name

_PLAIN = "dm:"
_HASHED = "dm#"
_RANDOM_DIGITS = 32  # half of those of a SHA-256
_MOST_DIGITS = len(str(MAX_NAME_BYTES))


def gid_of(one: str, other: str) -> str:
    """Return the gid of the chat between two users, in either order. Raise InvalidInput for an invalid uid.

    The length of the first uid makes it unambiguous for any two uids. If it would be too long, it is a SHA-256 instead.
    """
    return _gid_of(check_name(one, "uid"), check_name(other, "uid"))


def _gid_of(one: str, other: str) -> str:
    first, second = sorted((one, other))
    gid = f"{_PLAIN}{len(first)}:{first}:{second}"
    if len(gid.encode(errors="replace")) <= MAX_NAME_BYTES:
        return gid
    digest = hashlib.sha256(f"{len(first)}:{first}:{second}".encode(errors="replace")).hexdigest()
    return f"{_HASHED}{digest}"


def peer_of(gid: str, uid: str, known: Iterable[str] = ()) -> str | None:
    """Return the other user of a user's one-to-one chat (perhaps themselves); None if it is not their chat.

    A SHA-256 does not name the users: then it is the one of the `known` users whose chat has this gid.
    """
    if gid.startswith(_HASHED):
        return next((other for other in known if _gid_of(uid, other) == gid), None)
    first, second = pair_of(gid) or ("", "")
    if uid not in {first, second}:
        return None
    return second if first == uid else first


def pair_of(gid: str) -> tuple[str, str] | None:
    """Return the two users of a one-to-one chat; None for a SHA-256 and for other groups."""
    length, _, pair = gid.removeprefix(_PLAIN).partition(":")
    if not gid.startswith(_PLAIN) or not (length.isascii() and length.isdecimal() and len(length) <= _MOST_DIGITS):
        return None
    first, second = pair[: int(length)], pair[int(length) + 1 :]
    return (first, second) if _gid_of(first, second) == gid else None


def is_direct(gid: str) -> bool:
    return gid.startswith((_PLAIN, _HASHED))


def random_gid() -> str:
    """Return a gid for a chat with a user who was erased, which nobody can find by the names."""
    return f"{_HASHED}{secrets.token_hex(_RANDOM_DIGITS // 2)}"


def says_names(gid: str) -> bool:
    """Return whether a gid of a one-to-one chat follows from the two uids."""
    return is_direct(gid) and not (is_hashed(gid) and len(gid) == len(_HASHED) + _RANDOM_DIGITS)


def is_hashed(gid: str) -> bool:
    """Return whether the gid of a one-to-one chat does not name the users."""
    return gid.startswith(_HASHED)


def refuse_direct(gid: str) -> None:
    """Raise InvalidInput if a gid is reserved for one-to-one chats, whose members are fixed."""
    if is_direct(gid):
        raise InvalidInput(f"{gid!r} is kept for one-to-one chats ({_PLAIN} and {_HASHED}): use `im dm`")
