"""Calls about live sessions: who is online. No I/O; see `imcore.streams.calls`."""

from collections.abc import Sequence
from typing import Any

from imcore.errors import SessionExpired
from imcore.streams import wire
from imcore.streams.calls.call import Call
from imcore.streams.keys import Keyspace


def beat(space: Keyspace, uid: str, session: str, lives_ms: int, *, opens: bool) -> Call[int]:
    """Open a session or keep it alive; answers when it expires, in ms of the server's clock."""
    partition = space.partition_of(uid)
    keys = (space.sessions(uid), space.online(partition), space.online_ms(partition))

    def decode(answer: Any) -> int:
        if isinstance(answer, bytes):
            raise SessionExpired(f"a session of {uid!r} has expired: open a new one")
        return int(answer)

    return Call("im_beat", keys, (uid, session, lives_ms, int(opens)), decode, writes=True)


def bye(space: Keyspace, uid: str, session: str) -> Call[int]:
    """End a session; answers how many the user still has."""
    keys = (space.sessions(uid), space.online(space.partition_of(uid)))
    return Call("im_bye", keys, (uid, session), int, writes=True)


def settle(space: Keyspace, partition: int) -> Call[int]:
    """Let nobody of a partition be online for as long as the clock was wrong; answers how many are online."""
    return Call("im_settle_online", (space.online(partition), space.online_ms(partition)), (), int, writes=True)


def online(space: Keyspace, partition: int, uids: Sequence[str]) -> Call[list[bool]]:
    """Ask which users, all of one partition, have a live session."""
    return Call("im_online", (space.online(partition),), tuple(uids), lambda answer: [one == 1 for one in answer])


def count_online(space: Keyspace, partition: int) -> Call[int]:
    """Ask how many users of a partition have a live session."""
    return Call("im_online", (space.online(partition),), (), lambda answer: int(answer[0]))


def online_uids(space: Keyspace, partition: int, *, offset: int, count: int) -> Call[list[str]]:
    """Ask for a page of the users of a partition who have a live session."""
    args = (offset, count)
    return Call("im_online_uids", (space.online(partition),), args, lambda answer: list(map(wire.text, answer)))
