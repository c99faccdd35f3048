"""Receipt policies of groups, and what a user may ask by them."""

from collections.abc import Sequence
from typing import NamedTuple

from imcore import msgid as msgids
from imcore.errors import ImError, NotAllowed, NotMember, UnknownMessage
from imcore.model.limits import ASKED_BY, GROUP_RECEIPTS, check_choice, check_handed_over, check_name
from imcore.model.values import GroupPolicy
from imcore.msgid import HIGHEST
from imcore.operations import queries
from imcore.operations.effects import Effects, GetKeyspace, call, call_each
from imcore.streams.calls import policy_calls
from imcore.streams.calls.call import Trimmed
from imcore.streams.calls.policy_calls import AskerFacts
from imcore.streams.keys import Keyspace


def set_group(gid: str, receipts: str | None, asked_by: str | None) -> Effects[GroupPolicy]:
    check_name(gid, "gid")
    receipts = None if receipts is None else check_choice(receipts, GROUP_RECEIPTS, "receipts")
    asked_by = None if asked_by is None else check_choice(asked_by, ASKED_BY, "asked_by")
    space = yield from GetKeyspace()
    if receipts is None and asked_by is None:
        return (yield from call(policy_calls.group_policy(space, gid)))
    return (yield from call(policy_calls.set_policy(space, gid, receipts, asked_by)))


def group_policy(gid: str) -> Effects[GroupPolicy]:
    check_handed_over(gid, "gid")
    space = yield from GetKeyspace()
    return (yield from call(policy_calls.group_policy(space, gid)))


def groups_without_receipts(space: Keyspace, gids: Sequence[str]) -> Effects[set[str]]:
    """Return the groups whose receipts are off, without those that cannot be read."""
    answers = yield from call_each([policy_calls.are_receipts_off(space, gid) for gid in gids])
    return {gid for gid, answer in zip(gids, answers, strict=True) if answer is True}


# What a user may ask.


class Permission(NamedTuple):
    """The questions that a user may ask about a group.

    A user may ask about own messages. With `others`, a user may also ask about others' messages since `joined`, a
    packed msgid. With `names`, the answer names who has read a message; else it only says how many have.
    """

    uid: str
    joined: int
    others: bool
    names: bool

    def covers(self, sender_uid: str, packed: int) -> bool:
        return sender_uid == self.uid or (self.others and packed > self.joined)


def permission(gid: str, by: str) -> Effects[Permission]:
    """Return what a user may ask about a group. Raise NotMember, NotAllowed."""
    space = yield from GetKeyspace()
    facts = yield from call(policy_calls.asker(space, gid, check_name(by, "uid")))
    return _permission(gid, by, facts, has_sent=False)


def _permission(gid: str, by: str, facts: AskerFacts, *, has_sent: bool) -> Permission:
    if facts.joined is None and not has_sent:
        raise NotMember(f"{by!r} is not a member of {gid!r}")
    if facts.receipts == "off":
        raise NotAllowed(f"the receipts of {gid!r} are off: nobody is told who has read what")
    joined = HIGHEST if facts.joined is None else facts.joined
    return Permission(by, joined, facts.asked_by == "members", facts.receipts == "names" and not facts.is_off)


def permission_about(gid: str, by: str, packed: int) -> Effects[Permission]:
    """Return what a user may ask. Raise NotAllowed or UnknownMessage if they may not ask about this message."""
    allowed, refusals = yield from permitted(gid, by, [packed])
    if refusal := refusals[packed]:
        raise refusal
    return allowed


def permitted(gid: str, by: str, packed: Sequence[int]) -> Effects[tuple[Permission, dict[int, ImError | None]]]:
    """Return what a user may ask, and for each message (packed) None, or why they may not ask about it.

    Who has left the group may still ask about own messages. Raise NotMember for who has sent none of these.
    """
    space = yield from GetKeyspace()
    facts = yield from call(policy_calls.asker(space, gid, check_name(by, "uid"), packed))
    own = yield from _own(gid, by, packed, facts)
    allowed = _permission(gid, by, facts, has_sent=True in own)
    return allowed, {msgid: _refusal(gid, allowed, msgid, is_own) for msgid, is_own in zip(packed, own, strict=True)}


def _own(gid: str, by: str, packed: Sequence[int], facts: AskerFacts) -> Effects[list[bool | ImError]]:
    """Return for each message whether the user has sent it, or the error that it does not exist.

    SQL answers for messages that Redis has trimmed.
    """
    trimmed = [msgid for msgid, own in zip(packed, facts.own, strict=True) if isinstance(own, Trimmed)]
    rows = (yield from queries.MessagesByMsgid(gid, trimmed)) if trimmed else {}
    senders: dict[int, bool | ImError] = {msgid: row.sender_uid == by for msgid, row in rows.items()}
    return [
        senders.get(msgid, queries.unknown_message(gid, msgid)) if isinstance(own, Trimmed) else own
        for msgid, own in zip(packed, facts.own, strict=True)
    ]


def _refusal(gid: str, allowed: Permission, packed: int, is_own: bool | ImError) -> ImError | None:
    if isinstance(is_own, ImError) or is_own:
        return is_own if isinstance(is_own, ImError) else None
    if packed <= allowed.joined:
        return UnknownMessage(f"{msgids.unpack(packed)} of {gid!r} is from before {allowed.uid!r} joined")
    if allowed.others:
        return None
    return NotAllowed(f"only the sender of {msgids.unpack(packed)} of {gid!r} may ask who has read it")


def check_names(gid: str, allowed: Permission) -> None:
    """Raise NotAllowed unless a user is told names."""
    if not allowed.names:
        raise NotAllowed(f"{allowed.uid!r} is told no names in {gid!r}: it gives none, or their own receipts are off")
