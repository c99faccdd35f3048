"""Creates a group with its first members. Others see the whole group or no group, even if the creator is killed.

No call may hold the server for long, so many members are added in steps.
Nobody sees the group before the last step.
The same creation again continues where it ended. Whoever needs the gid undoes an abandoned creation, or a worker does.
"""

import hashlib
from collections.abc import Sequence

from imcore.errors import GroupAbandoned, GroupExists, GroupUnderWay
from imcore.model.values import Group
from imcore.operations.effects import Effects, GetKeyspace, Pages, Sleep, call, call_many
from imcore.streams.calls import creation_calls, group_calls
from imcore.streams.calls.creation_calls import LOST
from imcore.streams.keys import Keyspace, uid_of
from imcore.util.backoff import pauses
from imcore.util.batches import batches

STEP = 100
"""The members that one call adds or removes: that costs the server some milliseconds."""

TOLD_AT_ONCE = 500
_PATIENCE_S = 12.0
"""The longest wait for another process that creates the group. Its lock ends 10 s after its death."""


def create(gid: str, uids: Sequence[str]) -> Effects[Group]:
    """Create a group; the same again changes nothing. Raise GroupExists, GroupUnderWay."""
    space = yield from GetKeyspace()
    waited_s, pause = 0.0, pauses()
    while True:
        try:
            return (yield from _attempt(space, gid, uids))
        except GroupAbandoned:
            yield from undo(gid)
        except GroupUnderWay:
            if waited_s > _PATIENCE_S:
                raise
            seconds = next(pause)
            waited_s += seconds
            yield from Sleep(seconds)


def _attempt(space: Keyspace, gid: str, uids: Sequence[str]) -> Effects[Group]:
    token, at_once = _token(uids), len(uids) <= STEP
    first = creation_calls.create(space, gid, uids) if at_once else creation_calls.begin(space, gid, token)
    begun = yield from call(first)
    if begun:
        existing, is_unnotified, has_all = begun
        has_all = has_all and (at_once or (yield from _are_members(space, gid, uids)))
        if existing.members != len(uids) or not has_all:
            raise GroupExists(f"group {gid!r} exists already, with other members: use `im group add` or `remove`")
        if is_unnotified:
            yield from tell(gid, uids)
        return existing
    if not at_once:
        yield from _go_on(space, gid, uids, token)
    return Group(gid, len(uids), 0, None)


def _go_on(space: Keyspace, gid: str, uids: Sequence[str], token: str) -> Effects[None]:
    for step in batches(uids, STEP):
        _check_owned(gid, (yield from call(creation_calls.add(space, gid, token, step))))
    _check_owned(gid, (yield from call(creation_calls.end(space, gid, token, len(uids)))))
    yield from tell(gid, uids)


def _check_owned(gid: str, answer: int | None) -> None:
    if answer is LOST:
        raise GroupUnderWay(f"another process creates group {gid!r}: try again in a moment")


def _token(uids: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for uid in sorted(uids):
        digest.update(uid.encode() + b"\0")
    return digest.hexdigest()


def _are_members(space: Keyspace, gid: str, uids: Sequence[str]) -> Effects[bool]:
    answers = yield from call_many(
        [group_calls.are_members(space, gid, step) for step in batches(uids, group_calls.PAGE)]
    )
    return all(answers)


def tell(gid: str, uids: Sequence[str]) -> Effects[None]:
    """Tell the live sessions of a group's first members that they are in it."""
    space = yield from GetKeyspace()
    pages = list(batches(uids, TOLD_AT_ONCE)) or [[]]
    for number, page in enumerate(pages, 1):
        yield from call(creation_calls.notify(space, gid, page, is_last=number == len(pages)))


def undo(gid: str, *, mends: bool = False) -> Effects[bool]:
    """Remove what an abandoned creation has left; return False if the creation continues after all.

    A repair that brings the group back from SQL `mends` it: it undoes the creation also while its process lives, and
    nobody begins another creation for some seconds, unless the group exists before.
    """
    space = yield from GetKeyspace()
    while True:
        uids = yield from call(group_calls.some_spans(space, gid, STEP))
        if not (yield from call(creation_calls.undo(space, gid, uids, is_repair=mends))):
            return False
        if not uids:
            return True


def first_members(gid: str) -> Pages[str]:
    """Yield the uids that joined a group before its first message; one may come twice, a leaver may be missing.

    The journal does not name the members with whom a group was created; it names each leaver.
    """
    space = yield from GetKeyspace()
    cursor = ""
    while cursor != "0":
        cursor, spans = yield from call(group_calls.scan_first_spans(space, gid, cursor or "0"))
        yield list(map(uid_of, spans))
