"""Least privilege in Redis: what each kind of program has to be allowed, and nothing else.

A function runs with the rights of who calls it. So the rules name the commands inside the functions too, each for the
kinds of keys that the functions use it on; what they cannot do is let a program have a key only through a function. Who
may send can add to a stream, and so can shorten it (XADD MAXLEN): a gateway is trusted with the chat, not with the
server, nor with what the workers keep.

Only the worker may load functions, and begin new data. It starts first, or `im up` or an administrator does.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from imcore.streams.keys import RQ_FAILED, RQ_QUEUED, RQ_RUNNING

PASSWORD = "#SHA256_OF_THE_PASSWORD"  # noqa: S105 (a placeholder; the server refuses it as it stands)

_WIDEST_TAG = 5
"""Partitions are numbered with so many digits at most."""

_CONNECTING = ("+@connection", "-@dangerous", "+cluster|slots")
"""What a driver says and asks first. By category: Redis 7.0 refuses rules that name CLIENT SETINFO, which is newer."""

_ASKING = (
    *("fcall_ro", "time", "exists", "hget", "hkeys", "hmget", "lindex", "llen", "smembers", "sscan"),
    *("xrange", "xrevrange"),
    *("zcard", "zcount", "zmscore", "zrange", "zrangebyscore", "zscan", "zscore"),
)
"""What every question about the chat takes."""

_LOOKING_INTO_IT = (
    "get",
    "info",
    "lrange",
    "memory|usage",
    "pttl",
    "sismember",
    "xinfo|consumers",
    "xinfo|groups",
    "xlen",
    "xpending",
)
"""What `im stats`, `im dead` and `im check` take beside that."""

_CHATTING = ("spublish", "ssubscribe", "sunsubscribe")
"""What messages, acks and live sessions take beside the questions, and changes nothing that is kept."""

_OF_USERS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("meta", "idempotency_newer", "idempotency_older", "creating", "untold"): ("hset",),
    ("creating", "untold"): ("hdel",),
    ("stream",): ("xgroup|create", "xgroup|destroy", "xgroup|setid"),
    ("stream", "journal"): ("xadd",),
    ("journal",): ("xdel",),  # an entry whose id cannot be packed: another one takes its place
    ("acked", "joined", "left", "recalled", "sessions", "online"): ("zadd",),
    ("acked", "joined", "dirty", "sessions", "online"): ("zrem",),
    ("online_ms",): ("get", "set"),
    ("sessions",): ("pexpireat",),
    ("groups", "groups_of"): ("sadd",),
    ("groups_of",): ("srem",),
    ("own_unacked",): ("rpush", "ltrim", "lrem", "unlink"),
    ("idempotency_older",): ("unlink",),
}
"""What the functions that users' calls go to may do, to which kinds of keys."""

_KEYS_OF_USERS = dict.fromkeys(kind for kinds in _OF_USERS for kind in kinds)
"""The kinds of keys that these functions are given."""

_CHANGING = (
    *("fcall", "hset", "rpush", "sadd", "spublish", "srem", "xadd", "xgroup|create", "xgroup|destroy", "xgroup|setid"),
    *("zadd", "zrem"),
)
_WORKING = (
    *("function|load", "incr", "incrby", "hdel", "hincrby", "hsetnx", "scard"),
    *("hrandfield", "xack", "xclaim", "xdel", "xinfo|stream", "xreadgroup", "xsetid", "xtrim"),
    "bgrewriteaof",
)
"""What journals, digests, retention and the mending of lost data take beside all that."""

_REPLACING: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("own_unacked", "rebuilt", "shadow"): ("del", "unlink"),
    ("idempotency_older",): ("unlink",),
    ("version",): ("set",),
}
"""What makes an end of a whole key: a worker may do that to some kinds only."""

_LEASES = ("~im:lease:*", "+set", "+del", "+pexpire")

_OF_RQ = (
    *("~rq:*", "&rq:*"),
    *("+@hash", "+@list", "+@set", "+@sortedset", "+@stream", "+@string", "+@pubsub", "+@transaction", "-@dangerous"),
    *("+del", "+exists", "+expire", "+expireat", "+persist", "+pexpire", "+ttl", "+type", "+unlink"),
    *("+eval", "+evalsha", "+script|exists", "+script|load", "+info"),
)
"""Jobs. They are another program's keys, of all kinds: kept to these, it may use whatever is not dangerous."""

_HAVE_NAMES = {"journal", "groups", "online", "online_ms", "version", "rebuilt", "creating", "untold"}
"""The kinds of which a partition has one key; the keys of others go on with a gid or uid."""


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


def _keys_of(kinds: Iterable[str], right: str = "~") -> Iterator[str]:
    # One ? a digit: a * would reach over the closing brace into a gid. The server tries short ones first.
    names = [kind if kind in _HAVE_NAMES else f"{kind}:*" for kind in kinds]
    return (f"{right}im:{{{'?' * width}}}:{name}" for width in range(1, _WIDEST_TAG + 1) for name in names)


def _selector(*rules: Iterable[str]) -> str:
    return f"({' '.join(rule for some in rules for rule in some)})"


def _selectors(rights: Mapping[tuple[str, ...], tuple[str, ...]]) -> Iterator[str]:
    return (_selector(_keys_of(kinds), _allowed(commands)) for kinds, commands in rights.items())


def _renaming(source: str, destination: str) -> str:
    """Return the selector for RENAME, which reads and writes its source and only writes its destination: one way."""
    return _selector(_keys_of([source], "%RW~"), _keys_of([destination], "%W~"), _allowed(("rename",)))


READER = Role(
    "reader",
    (
        *("%R~im:*", *_CONNECTING, *_allowed(_ASKING, _LOOKING_INTO_IT)),
        _selector((f"%R~{key}" for key in (RQ_QUEUED, RQ_RUNNING, RQ_FAILED)), _allowed(("llen", "zcard"))),
    ),
)
"""Shows and counts: `im status`, `unread`, `group list`, `stats`, `dead list`, `check` without `--repair`, ..."""

GATEWAY = Role(
    "gateway",
    (
        *("%R~im:*", "&im:*", *_CONNECTING, *_allowed(_ASKING, _CHATTING)),
        _selector(_keys_of(_KEYS_OF_USERS), _allowed(("fcall",))),
        *_selectors(_OF_USERS),
        _renaming("idempotency_newer", "idempotency_older"),
    ),
)
"""Talks for users: groups, messages, acks, receipts, live sessions, `im import`."""

WORKER = Role(
    "worker",
    (
        *("~im:*", "&im:*", *_CONNECTING, *_allowed(_ASKING, _LOOKING_INTO_IT, _CHANGING, _WORKING)),
        _selector(_LEASES),
        *_selectors(_REPLACING),
        _renaming("shadow", "stream"),
        _renaming("idempotency_newer", "idempotency_older"),
        _selector(_OF_RQ),
    ),
)
"""All workers, and what an operator mends with: `im check --repair`, `rebuild`, `trim`, `dead requeue`."""

ROLES = {role.name: role for role in (WORKER, GATEWAY, READER)}
