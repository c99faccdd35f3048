"""Calls about live sessions: who is online. No I/O; see `lua/sessions.lua`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imcore.errors import SessionExpired
from imcore.streams import wire
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace


class LastSeen(NamedTuple):
    """Whether a user has a live session. `last_seen_ms` (since 1970) is None while they do, or if that is not known."""

    is_online: bool
    last_seen_ms: int | None


def heartbeat(space: Keyspace, uid: str, session: str, lives_ms: int, *, opens: bool) -> Call[int]:
    """Open a session or keep it alive; answers when it expires, in ms of the server's clock.

    A session of an erased user does not begin again: UserErasing, or SessionExpired.
    """
    p = space.partition_of(uid)
    keys = (
        *(space.sessions(uid), space.online(p), space.online_ms(p), space.last_seen(p)),
        *(space.erasing(p), space.ended_sessions(p)),
    )

    def decode(answer: Any) -> int:
        if isinstance(answer, bytes):
            raise SessionExpired(f"a session of {uid!r} has expired: open a new one")
        return int(answer)

    return Call("im_heartbeat", keys, (uid, session, lives_ms, int(opens)), decode, writes=True)


def end_session(space: Keyspace, uid: str, session: str) -> Call[int]:
    """End a session; answers how many the user still has."""
    partition = space.partition_of(uid)
    keys = (space.sessions(uid), space.online(partition), space.last_seen(partition))
    return Call("im_end_session", keys, (uid, session), int, writes=True)


def process(space: Keyspace) -> Call[str]:
    """Ask which process of the server has the served partitions: by its name."""
    return Call("im_process", (space.journal(space.served[0]),), (), wire.text)


def expire_online(space: Keyspace, partition: int) -> Call[int]:
    """Drop a partition's users whose sessions have ended, also by a corrected clock; answers how many are online."""
    keys = (space.online(partition), space.online_ms(partition), space.last_seen(partition))
    return Call("im_expire_online", keys, (), int, writes=True)


def online(space: Keyspace, partition: int, uids: Sequence[str]) -> Call[list[bool]]:
    """Ask which users, all of one partition, have a live session."""
    return Call("im_online", (space.online(partition),), tuple(uids), lambda answer: [one == 1 for one in answer])


def seen(space: Keyspace, uid: str) -> Call[LastSeen]:
    """Ask whether a user has a live session, and when their last one ended."""
    partition = space.partition_of(uid)
    keys = (space.online(partition), space.last_seen(partition))
    return Call("im_seen", keys, (uid,), lambda answer: LastSeen(answer[0] == 1, int(answer[1]) if answer[1] else None))


def count_online(space: Keyspace, partition: int) -> Call[int]:
    """Ask how many users of a partition have a live session."""
    return Call("im_online", (space.online(partition),), (), lambda answer: int(answer[0]))


def online_uids(space: Keyspace, partition: int, *, offset: int, count: int) -> Call[list[str]]:
    """Ask for a page of the users of a partition who have a live session."""
    return Call("im_online_uids", (space.online(partition),), (offset, count), wire.texts)
