"""Access rules of Redis: the rights that each kind of program needs, and no others.

A function runs with the rights of its caller. So the rules also allow the commands inside the functions, each for the
kinds of keys that the functions use. They cannot restrict a key to functions: a gateway that may send can add to a
stream, and so can shorten it (XADD MAXLEN). It is trusted with the chat, but not with the server or the workers' keys.

Only a worker may load functions and begin new data. So a worker, `im up` or an administrator starts first.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from imcore.streams.keys import RQ_FAILED, RQ_QUEUED, RQ_RUNNING, rq_job

PASSWORD = "#SHA256_OF_THE_PASSWORD"  # noqa: S105 (a placeholder; the server refuses it as it stands)

_WIDEST_TAG = 5
"""The digits of a partition's number, at most."""

_CONNECTING = ("+@connection", "-@dangerous", "+cluster|slots")
"""Commands of a new connection. By category: Redis 7.0 refuses rules that name CLIENT SETINFO, which is newer."""

_QUERIES = (
    *("fcall_ro", "time", "exists", "hget", "hkeys", "hmget", "lindex", "llen", "lrange"),
    *("sismember", "smembers", "sscan"),
    *("xrange", "xrevrange"),
    *("zcard", "zcount", "zmscore", "zrange", "zrangebyscore", "zscan", "zscore"),
)

_INSPECTIONS = (
    *("get", "info", "memory|usage", "pttl"),
    *("xinfo|consumers", "xinfo|groups", "xlen", "xpending"),
)
"""Further commands of `im stats`, `im health`, `im dead` and `im check`."""

_ABILITIES = ("info",)
"""Says whether a server can confirm that a replica or its disk has a message."""

_PUBSUB = ("spublish", "ssubscribe", "sunsubscribe")

_USER_COMMANDS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("meta", "idempotency_newer", "idempotency_older", "creating", "unnotified", "bookmarks"): ("hset",),
    ("creating", "unnotified", "bookmarks"): ("hdel",),
    ("stream",): ("xgroup|create", "xgroup|destroy", "xgroup|setid"),
    ("stream", "journal"): ("xadd",),
    ("journal",): ("xdel",),  # replaces an entry whose id cannot be packed
    (*("acked", "joined", "left", "ahead", "ahead_acked"), *("recalled", "rewrites", "sessions", "online")): ("zadd",),
    ("acked", "joined", "ahead", "ahead_acked", "dirty", "sessions", "online"): ("zrem",),
    ("online_ms",): ("get", "set"),
    ("sessions",): ("pexpireat",),
    ("groups", "groups_of"): ("sadd",),
    ("groups_of",): ("srem",),
    ("own_unacked",): ("lpush", "rpush", "ltrim", "lrem", "unlink"),
    ("idempotency_older",): ("unlink",),
    ("receipts_off",): ("sadd", "smismember", "srem"),
    ("last_seen",): ("zadd",),
}
"""Commands of the functions for users' calls, by the kinds of keys on which they run."""

_READ_ONLY = ("deleting", "erasing", "ended_sessions")
"""Kinds of keys that these functions only read."""

_USER_KEYS = dict.fromkeys([*(kind for kinds in _USER_COMMANDS for kind in kinds), *_READ_ONLY])
"""The kinds of keys of these functions."""

_CHANGES = (
    *("fcall", "hset", "rpush", "sadd", "spublish", "srem", "xadd", "xgroup|create", "xgroup|destroy", "xgroup|setid"),
    *("zadd", "zrem"),
)
_MAINTENANCE = (
    *("function|load", "incr", "incrby", "hdel", "hincrby", "hscan", "hsetnx", "scard"),
    *("hrandfield", "xack", "xclaim", "xdel", "xinfo|stream", "xreadgroup", "xsetid", "xtrim"),
    "bgrewriteaof",
)
"""Further commands for journals, digests, retention and repair."""

_OF_DELETED_GROUPS = (
    *("meta", "acked", "joined", "left", "recalled", "idempotency_newer", "ahead", "ahead_acked", "bookmarks"),
)
"""The kinds of keys that nobody but a deletion removes."""

_REPLACEMENTS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("own_unacked", "rebuilt", "shadow"): ("del", "unlink"),
    ("groups_of", "dirty", "sessions", "dead_shadow"): ("unlink",),
    ("idempotency_older", "stream", *_OF_DELETED_GROUPS): ("unlink",),
    ("version",): ("set",),
    ("ended_sessions",): ("pexpire",),
}
"""Commands that delete or replace a whole key: a worker may run them on some kinds of keys only."""

_OF_A_CHAT = (
    *("meta", "stream", "acked", "joined", "left", "idempotency_newer", "idempotency_older", "recalled"),
    *("ahead", "ahead_acked", "bookmarks", "own_unacked"),
)
"""The kinds of keys of a group that are renamed where an erased user's one-to-one chat gets another gid."""

_LEASES = ("~im:lease:*", "+set", "+del", "+pexpire")

_OF_RQ = (
    *("~rq:*", "&rq:*"),
    *("+@hash", "+@list", "+@set", "+@sortedset", "+@stream", "+@string", "+@pubsub", "+@transaction", "-@dangerous"),
    *("+del", "+exists", "+expire", "+expireat", "+persist", "+pexpire", "+ttl", "+type", "+unlink"),
    *("+eval", "+evalsha", "+script|exists", "+script|load", "+info"),
)
"""The keys of rq: all commands that are not dangerous, on these keys only."""

_ONE_PER_PARTITION = {
    *("journal", "groups", "online", "online_ms", "version", "rebuilt", "creating", "unnotified"),
    *("rewrites", "deleting", "receipts_off", "last_seen", "erasing", "ended_sessions", "dead"),
    "dead_shadow",
}
"""Kinds with one key per partition. All others have one per gid or uid."""


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of program, and the rules for its user (without the password)."""

    name: str
    rules: tuple[str, ...]

    @property
    def user(self) -> str:
        return f"im-{self.name}"

    def set_user(self) -> str:
        """Return the command that creates or resets the user."""
        return " ".join(("ACL SETUSER", self.user, "reset on", PASSWORD, *self.rules))

    def file_line(self) -> str:
        return " ".join(("user", self.user, "on", PASSWORD, *self.rules))


def _allowed(*commands: Iterable[str]) -> Iterator[str]:
    return (f"+{command}" for command in chain(*commands))


def _keys_of(kinds: Iterable[str], right: str = "~", of: str = "*") -> Iterator[str]:
    # One ? per digit: a * would match across the closing brace into a gid. The server tries short patterns first.
    names = [kind if kind in _ONE_PER_PARTITION else f"{kind}:{of}" for kind in kinds]
    return (f"{right}im:{{{'?' * width}}}:{name}" for width in range(1, _WIDEST_TAG + 1) for name in names)


def _selector(*rules: Iterable[str]) -> str:
    return f"({' '.join(chain(*rules))})"


def _selectors(rights: Mapping[tuple[str, ...], tuple[str, ...]]) -> Iterator[str]:
    return (_selector(_keys_of(kinds), _allowed(commands)) for kinds, commands in rights.items())


def _renaming(source: str, destination: str) -> str:
    """Return the selector for RENAME, which reads and writes its source, and only writes its destination."""
    return _selector(_keys_of([source], "%RW~"), _keys_of([destination], "%W~"), _allowed(("rename",)))


READER = Role(
    "reader",
    (
        *("%R~im:*", *_CONNECTING, *_allowed(_QUERIES, _INSPECTIONS)),
        _selector((f"%R~{key}" for key in (RQ_QUEUED, RQ_RUNNING, RQ_FAILED)), _allowed(("lindex", "llen", "zcard"))),
        _selector((f"%R~{rq_job('*')}",), _allowed(("hget",))),
    ),
)
"""Queries: `im status`, `unread`, `group list`, `stats`, `health`, `dead list`, `check` without `--repair`, ..."""

GATEWAY = Role(
    "gateway",
    (
        *("%R~im:*", "&im:*", *_CONNECTING, *_allowed(_QUERIES, _PUBSUB, _ABILITIES)),
        _selector(_keys_of(_USER_KEYS), _allowed(("fcall",))),
        *_selectors(_USER_COMMANDS),
        _renaming("idempotency_newer", "idempotency_older"),
    ),
)
"""Calls for users: groups, messages, acks, receipts, live sessions, `im import`."""

WORKER = Role(
    "worker",
    (
        *("~im:*", "&im:*", *_CONNECTING, *_allowed(_QUERIES, _INSPECTIONS, _CHANGES, _MAINTENANCE)),
        _selector(_LEASES),
        *_selectors(_REPLACEMENTS),
        _renaming("shadow", "stream"),
        _renaming("dead_shadow", "dead"),
        _renaming("idempotency_newer", "idempotency_older"),
        _selector(_keys_of(_OF_A_CHAT, "%RW~", "dm*"), _keys_of(_OF_A_CHAT, "%W~", "dm#*"), _allowed(("rename",))),
        _selector(_OF_RQ),
    ),
)
"""All workers, and an operator's repairs: `im check --repair`, `rebuild`, `trim`, `dead requeue`."""

ROLES = {role.name: role for role in (WORKER, GATEWAY, READER)}
USERS = {role.user for role in ROLES.values()}
