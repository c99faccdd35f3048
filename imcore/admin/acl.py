"""Least privilege in Redis: what each kind of program has to be allowed, and nothing else.

A function runs with the rights of who calls it. So the rules name the commands inside the functions too, and keep a
program to the keys and channels of imcore; what they cannot do is let it have a key only through a function. Who may
send can add to a stream, and so can shorten it (XADD MAXLEN): a gateway is trusted with the chat, not with the server.

Only the worker may load functions. It starts first, or `im up` or an administrator does.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imcore.streams.keys import CONFIG

PASSWORD = "#SHA256_OF_THE_PASSWORD"  # noqa: S105 (a placeholder; the server refuses it as it stands)

_WIDEST_TAG = 5
"""Partitions are numbered with so many digits at most."""

_CONNECTING = ("select", "client|setinfo")
_ON_A_CLUSTER = ("asking", "cluster|slots", "command")

_ASKING = (
    *("fcall_ro", "time", "exists", "hget", "hmget", "lindex", "llen", "smembers", "sscan", "xrange", "xrevrange"),
    *("zcard", "zcount", "zmscore", "zrange", "zrangebyscore", "zscan", "zscore"),
)
"""What every question about the chat takes."""

_LOOKING_INTO_IT = ("hkeys", "lrange", "sismember", "xinfo|groups", "xlen", "xpending")
"""What `im stats`, `im dead` and `im check` take beside that."""

_CHANGING = (
    *("fcall", "hset", "rpush", "sadd", "spublish", "srem", "xadd", "xgroup|create", "xgroup|destroy", "xgroup|setid"),
    *("zadd", "zrem", "pexpire"),
)
"""What whoever changes anything takes."""

_CHATTING = (*("lpop", "lrem", "pexpireat", "pttl", "ssubscribe", "sunsubscribe", "zremrangebyscore", "zrevrange"),)
"""What messages, acks and live sessions take beside that."""

_WORKING = (
    *("function|load", "get", "set", "incr", "incrby", "hdel", "hincrby", "hsetnx", "del", "unlink", "rename", "scard"),
    *("xack", "xclaim", "xdel", "xinfo|stream", "xreadgroup", "xsetid", "xtrim"),
)
"""What journals, digests, retention and the mending of lost data take beside all that."""

_OF_RQ = (
    *("~rq:*", "&rq:*"),
    *("+@hash", "+@list", "+@set", "+@sortedset", "+@stream", "+@string", "+@pubsub", "+@transaction", "-@dangerous"),
    *("+del", "+exists", "+expire", "+expireat", "+persist", "+pexpire", "+ttl", "+type", "+unlink"),
    *("+eval", "+evalsha", "+script|exists", "+script|load", "+info"),
)
"""Jobs. They are another program's keys, of all kinds: kept to these, it may use whatever is not dangerous."""


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of program, and the rules for its user (without the password)."""

    name: str
    rules: tuple[str, ...]

    @property
    def user(self) -> str:
        """What its user is called, if the operator does not choose another name."""
        return f"im-{self.name}"

    def set_user(self) -> str:
        """Return the command that makes the user, or sets it anew."""
        return " ".join(("ACL SETUSER", self.user, "reset on", PASSWORD, *self.rules))

    def file_line(self) -> str:
        """Return the line that makes the user in the server's `aclfile`."""
        return " ".join(("user", self.user, "on", PASSWORD, *self.rules))


def _allowed(*commands: Iterable[str]) -> Iterator[str]:
    return (f"+{command}" for some in commands for command in some)


def _of_each_partition(*names: str) -> Iterator[str]:
    # One ? a digit: a * would reach over the closing brace into a gid.
    return (f"~im:{{{'?' * width}}}:{name}" for name in names for width in range(1, _WIDEST_TAG + 1))


def _selector(*rules: Iterable[str]) -> str:
    return f"({' '.join(rule for some in rules for rule in some)})"


_CLIENT = (*_CONNECTING, *_ON_A_CLUSTER)

READER = Role("reader", ("%R~im:*", *_allowed(_CLIENT, _ASKING, _LOOKING_INTO_IT)))
"""Shows and counts: `im status`, `unread`, `group list`, `stats`, `dead list`, `check` without `--repair`, ..."""

GATEWAY = Role(
    "gateway",
    (
        *("~im:*", "&im:*"),
        *_allowed(_CLIENT, _ASKING, _CHANGING, _CHATTING),
        # Nothing of the chat itself can be deleted: a leaver's own list, client_msgids that were known long enough, and
        # the entries of a journal whose ids cannot be packed.
        _selector(_of_each_partition("own:*", "once_*"), _allowed(("del", "unlink", "rename"))),
        _selector(_of_each_partition("journal"), _allowed(("xdel",))),
        _selector((f"~{CONFIG}",), _allowed(("hsetnx",))),
    ),
)
"""Talks for users: groups, messages, acks, receipts, live sessions, `im import`."""

WORKER = Role(
    "worker",
    ("~im:*", "&im:*", *_allowed(_CLIENT, _ASKING, _LOOKING_INTO_IT, _CHANGING, _WORKING), f"({' '.join(_OF_RQ)})"),
)
"""All workers, and what an operator mends with: `im check --repair`, `rebuild`, `trim`, `dead requeue`."""

ROLES = {role.name: role for role in (WORKER, GATEWAY, READER)}
