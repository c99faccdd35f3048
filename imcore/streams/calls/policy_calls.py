"""Calls about receipt policies. No I/O; see `lua/policies.lua`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imcore.errors import ImError
from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS
from imcore.model.values import GroupPolicy
from imcore.streams.calls.call import Call, error_of
from imcore.streams.keys import Keyspace


class AskerFacts(NamedTuple):
    """What decides about a question of a user, who joined after `joined` (packed), None for no member.

    `own` says of each message whether the user has sent it, or why Redis cannot say that.
    """

    receipts: str
    asked_by: str
    joined: int | None
    is_off: bool
    own: list[bool | ImError]


def set_policy(space: Keyspace, gid: str, receipts: str | None, asked_by: str | None) -> Call[GroupPolicy]:
    """Set a policy; None: as it is. Answers the policy then."""
    k = space.group(gid)

    def decode(answer: list[bytes]) -> GroupPolicy:
        return GroupPolicy(gid, *_policy(*answer))

    return Call("im_set_policy", (k.meta, k.journal), (gid, receipts or "", asked_by or ""), decode, gid, writes=True)


def asker(space: Keyspace, gid: str, uid: str, msgids: Sequence[int] = ()) -> Call[AskerFacts]:
    """Ask what decides about a question of a user about these messages (packed)."""
    k = space.group(gid)

    def decode(answer: list[Any]) -> AskerFacts:
        receipts, asked_by, joined, is_off, *own = answer
        senders = [
            error_of(item, gid, msgid=msgid) if isinstance(item, bytes) else item == 1
            for item, msgid in zip(own, msgids, strict=True)
        ]
        return AskerFacts(*_policy(receipts, asked_by), int(joined) if joined else None, is_off == 1, senders)

    return Call("im_policy", (k.meta, k.stream, k.joined, k.receipts_off), (uid, *msgids), decode, gid)


def group_policy(space: Keyspace, gid: str) -> Call[GroupPolicy]:
    k = space.group(gid)

    def decode(answer: list[Any]) -> GroupPolicy:
        return GroupPolicy(gid, *_policy(*answer[:2]))

    return Call("im_policy", (k.meta, k.stream, k.joined, k.receipts_off), ("",), decode, gid)


def are_receipts_off(space: Keyspace, gid: str) -> Call[bool]:
    """Ask whether a group's receipts are off; they are not in a group that does not exist."""
    return Call("", (), ("HGET", space.group(gid).meta, "receipts"), lambda value: value == b"off", gid)


def reads_in_private(space: Keyspace, partition: int, uid: str) -> Call[bool]:
    """Ask whether a user's receipts are off in a partition."""
    return Call("", (), ("SISMEMBER", space.receipts_off(partition), uid), lambda answer: answer == 1)


def set_receipts(space: Keyspace, partition: int, uid: str, *, is_off: bool, is_journalled: bool = True) -> Call[int]:
    """Set in one partition whether a user's receipts are off; answers 1 if that is new.

    In the partition of the uid it is the user's choice, which the journal notes, unless it is only put back.
    """
    is_choice = is_journalled and partition == space.partition_of(uid)
    keys = (space.receipts_off(partition), space.erasing(partition), *[space.journal(partition)] * is_choice)
    return Call("im_set_receipts", keys, (uid, "off" if is_off else "on"), int, writes=True)


def _policy(receipts: bytes, asked_by: bytes) -> tuple[str, str]:
    """Return a policy. What somebody has written by hand counts as the default."""
    known = receipts.decode(errors="replace"), asked_by.decode(errors="replace")
    return known[0] if known[0] in GROUP_RECEIPTS else "names", known[1] if known[1] in ASKED_BY else "sender"
