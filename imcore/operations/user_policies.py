"""Users who read in private: each user's own choice.

The partition of a uid has the user's choice. All other partitions have copies, because an ack looks at its own
partition only. The worker `persist` copies it again, in case the process that set it died over that.
"""

from contextlib import suppress

from imcore.errors import UserErasing
from imcore.model.limits import USER_RECEIPTS, check_choice, check_name
from imcore.model.values import UserPolicy
from imcore.operations.effects import Effects, GetKeyspace, call, call_many
from imcore.streams.calls import policy_calls
from imcore.streams.keys import Keyspace


def set_user(uid: str, receipts: bool | str) -> Effects[UserPolicy]:
    check_name(uid, "uid")
    if isinstance(receipts, bool):
        receipts = "on" if receipts else "off"
    is_off = check_choice(receipts, USER_RECEIPTS, "receipts") == "off"
    space = yield from GetKeyspace()
    yield from call(policy_calls.set_receipts(space, space.partition_of(uid), uid, is_off=is_off))
    yield from spread(uid)
    return UserPolicy(uid, receipts)


def user_policy(uid: str) -> Effects[UserPolicy]:
    space = yield from GetKeyspace()
    is_off = yield from _is_off(space, check_name(uid, "uid"))
    return UserPolicy(uid, "off" if is_off else "on")


def _is_off(space: Keyspace, uid: str) -> Effects[bool]:
    return (yield from call(policy_calls.reads_in_private(space, space.partition_of(uid), uid)))


def spread(uid: str) -> Effects[None]:
    """Copy a user's choice to all partitions; again, if it was changed meanwhile. That of an erased user goes."""
    space = yield from GetKeyspace()
    others = [partition for partition in range(space.partitions) if partition != space.partition_of(uid)]
    copied = None
    while others and copied != (is_off := (yield from _is_off(space, uid))):
        with suppress(UserErasing):
            yield from call_many([policy_calls.set_receipts(space, each, uid, is_off=is_off) for each in others])
        copied = is_off
