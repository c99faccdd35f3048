"""What a caller may give for each parameter of a public function: mostly what fits, and often what cannot be."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from imcore.model.direct import gid_of
from imcore.model.limits import MAX_NAME_BYTES
from imcore.model.values import Draft, HistoryPage, Message, Receipt

GIDS = ("#ubuntu", "{0}", "[red]群[/red]")
UIDS = ("a:b", "%s_", "o'neil", '"{0}"')
ODD = (
    *("", " ", "\x00", "\n", "\x1b[2J", "\x1f", "\x1e", "\ud800", "\udfff x", "\u202eabc", "\u2028", "\ufeff"),
    *("{}", "{0.__class__}", "[red]", "[/]", "%", "_", "%(x)s", "*", "?", "\\", "'", '"', "$", "+", "-", "(", "0"),
    *("dm:1:a:b", "dm:", "dm#", "im:config", "None", "-1", "NaN", "👩\u200d👧", "e\u0301", "\x85", "\x7f"),
    *("x" * MAX_NAME_BYTES, "x" * (MAX_NAME_BYTES + 1), "群" * 43, "y" * 70_000),
)
MSGIDS = (
    *("", "0-0", "0", "1-", "-", "+", "$", "*", "-1-0", "1767225600000", "1767225600000-0-0", "1577836800000-0"),
    *("1577836800000-1", "1767225600000-8191", "1767225600000-8192", "1767225600000--1", " 1767225600000-0"),
    *(
        "\uff11767225600000-\uff10",
        "01767225600000-0",
        "99999999999999-0",
        "2677349228543-8191",
        "18446744073709551615-1",
    ),
    *("9" * 400 + "-0", "0:1767225600000-0", "1:1767225600000-0", "99:1-1", "0:0-0", "0:" + "9" * 20 + "-0"),
)


@dataclass(frozen=True)
class Known:
    """An answer that the system gave, for the world to look up: of this kind, the newest or this many before."""

    kind: str
    back: int


def known(kind: str) -> st.SearchStrategy[Any]:
    """Something that was given out before."""
    return st.builds(Known, st.just(kind), st.integers(0, 5))


wrong_types = st.sampled_from([None, 0, 7, -1, 2**70, 1.5, float("nan"), True, b"bytes", [], ("a",), {}, object])
texts = st.sampled_from(ODD) | st.text(max_size=20)
"""Any text, lone surrogates and controls too."""


def odd(good: st.SearchStrategy[Any], *bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is good, else something else."""
    # Not one_of: that would take each of them as often.
    return st.sampled_from([False] * 7 + [True]).flatmap(lambda is_bad: st.one_of(*bad) if is_bad else good)


def nested(depth: int) -> dict[str, Any]:
    """An object within an object, and so on."""
    return {"a": nested(depth - 1)} if depth else {}


gids = odd(st.sampled_from((*GIDS[:1] * 4, *GIDS, gid_of(*UIDS[:2]))), texts, wrong_types)
uids = odd(st.sampled_from(UIDS), texts, wrong_types)
msgids = odd(known("msgid"), st.sampled_from(MSGIDS), texts, wrong_types)
contents = odd(st.sampled_from(["hi", "two\nlines", "[red]x[/red] {} %s", "\x1b[2J", "👍🏽"]), texts, wrong_types)
client_msgids = odd(st.none() | st.sampled_from(["1", "c 2"]), texts, wrong_types)
json_values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | texts
metas = odd(
    st.none() | st.just({}) | st.just({"reply_to": "1767225600000-0"}),
    st.dictionaries(texts, st.recursive(json_values, lambda inner: st.lists(inner, max_size=2)), max_size=3),
    st.sampled_from([{"a": float("nan")}, {"a": 2**70}, {"a": {"b": object()}}, {"a": "x" * 5000}]),
    st.integers(10, 150).map(nested),
    st.dictionaries(texts, wrong_types, max_size=2),
    wrong_types,
)
many_uids = odd(st.lists(st.sampled_from(UIDS), max_size=4), st.lists(uids, max_size=3), texts, wrong_types)
sessions = odd(known("sid"), texts, wrong_types)
limits = odd(st.none() | st.integers(1, 5), st.sampled_from([0, -1, 2**31, 2**63, 2**70, -(2**70), True, "1", 1.5]))
times = odd(
    st.none() | st.just(datetime(2004, 12, 25, tzinfo=UTC)),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.sampled_from(["2004-12-25", 0, b""]),
)
seconds = st.sampled_from([0, 0.0, -1.0, -0.0, 1e-9])
intervals = odd(
    st.sampled_from([0.0, 1.0]), st.sampled_from([-1.0, float("nan"), float("inf"), 1e300, -float("inf"), None, "1"])
)
resume_points = odd(
    st.none() | st.dictionaries(st.sampled_from(GIDS), st.sampled_from(["0-0", *MSGIDS])),
    st.dictionaries(st.sampled_from(ODD[:-1]), msgids, max_size=2),
    st.dictionaries(st.sampled_from(GIDS), msgids, max_size=2),
    wrong_types,
)
receipts = odd(
    st.lists(known("receipt"), max_size=3),
    st.lists(st.builds(Receipt, gids, msgids, st.integers(), st.integers(), st.integers()), max_size=2),
)
messages = odd(
    known("message"),
    st.builds(
        Message,
        gids,
        msgids,
        st.integers(0, 2**63 - 1),
        st.sampled_from(UIDS),
        texts,
        client_msgids,
        times,
        meta=st.none() | metas,
    ),
)

PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "gid": gids,
    "uid": uids,
    "to_uid": odd(st.none() | uids, texts),
    "uids": many_uids,
    "by": uids,
    "sender_uid": uids,
    "admin": st.booleans(),
    "unread_only": st.booleans(),
    "asked_by": odd(st.sampled_from([None, "sender", "members"]), texts, wrong_types),
    "content": contents,
    "client_msgid": client_msgids,
    "sent_at": times,
    "meta": metas,
    "drafts": odd(
        st.lists(
            st.builds(Draft, st.sampled_from(UIDS), st.just("hi"), st.sampled_from(["", "1"]), st.none(), st.none()),
            max_size=3,
        ),
        st.lists(st.builds(Draft, uids, contents, client_msgids, times, metas), max_size=3),
        st.lists(wrong_types, max_size=2),
    ),
    "msgid": msgids,
    "msgids": odd(st.lists(msgids, max_size=4), texts, wrong_types),
    "limit": limits,
    "around": odd(st.none() | msgids, wrong_types),
    "first_unread": st.booleans(),
    "private": st.booleans(),
    "durable": st.none() | st.just("none") | texts,
    "page": odd(known("page"), st.builds(HistoryPage, st.lists(messages, max_size=2).map(tuple), *[st.booleans()] * 2)),
    "session": sessions,
    "receipts": receipts,
    "after": resume_points,
    "start": odd(st.sampled_from(["unread", "live", "join"]), texts, wrong_types),
    "most": odd(st.none() | st.integers(0, 3), st.sampled_from([-1, 2**70, "1", 1.5, True])),
    "tag": st.none() | texts | wrong_types,
    "resume_points": resume_points,
    "ack_every": odd(st.integers(1, 3), st.sampled_from([0, -1, 2**70, None, "1", 1.5])),
    "page_bytes": odd(st.integers(1, 10_000), st.sampled_from([0, -1, 2**70, None, "1", 1.5])),
    "ack_interval_s": intervals,
    "clean": st.booleans(),
    "timeout_s": odd(seconds, st.sampled_from([float("nan"), -float("inf")])),
    "count": st.sampled_from([0, 1, 1]) | st.sampled_from([2**70, -(2**70)]),
    "message": messages,
    "items": odd(st.lists(messages, max_size=3), st.lists(known("receipt"), max_size=3)),
    "before": st.none() | st.tuples(gids, msgids),
    "dataset": odd(known("dataset"), st.none() | texts),
    "server": texts,
    "outgoing": known("outgoing"),
    "reason": texts,
    "stopping": st.just(lambda: True),
    "dead_id": odd(known("dead"), st.sampled_from(MSGIDS), texts, wrong_types),
    "keep_messages": odd(st.sampled_from([0, 1, 3]), st.sampled_from([None, -1, 2**70])),
    "keep_ms": odd(st.sampled_from([None, 0, 10**12]), st.sampled_from([2**70, -1])),
    "on_progress": st.none(),
    "repair": st.just(False),  # fakeredis cannot mend
    "system": st.just(Known("system", 0)),
    "client": st.just(Known("client", 0)),
    "one": odd(st.sampled_from(UIDS), texts),
    "other": odd(st.sampled_from(UIDS), texts),
    "known": st.lists(st.sampled_from(UIDS) | texts, max_size=3),
}
"""By the parameter's name, which means the same wherever it stands."""

_how_acked = odd(st.sampled_from(["auto", "client", "off"]), texts, wrong_types)
_how_told = odd(st.sampled_from(["push", "poll"]), texts, wrong_types)
OF_ONE_ENTRY: dict[str, st.SearchStrategy[Any]] = {
    "Gateway.session": known("session"),
    "Chat.ack_many.acks": odd(
        st.lists(st.tuples(uids, st.none() | msgids).map(list), max_size=4), st.lists(wrong_types, max_size=2)
    ),
    "Gateway.fetched.before": st.none() | msgids,
    "Chat.history.before": st.none() | msgids,
    "Chat.history.after": st.none() | msgids,
    "Chat.set_group.receipts": odd(st.sampled_from([None, "names", "counts", "off"]), texts, wrong_types),
    "Chat.set_user.receipts": odd(st.sampled_from([True, False, "on", "off"]), texts, wrong_types),
    **{
        f"Chat.{name}.by": odd(st.none() | uids, texts, wrong_types)
        for name in ("status", "tally", "tallies", "message_status", "why")
    },
    "Chat.inbox.after": odd(st.none() | st.builds("{}:{}".format, st.sampled_from(MSGIDS), texts), texts, wrong_types),
    "Chat.gateway.acks": _how_acked,
    "Chat.listen.acks": _how_acked,
    "Device.live.acks": _how_acked,
    "Chat.gateway.receipts": _how_told,
    "Chat.listen.receipts": _how_told,
    "Device.live.receipts": _how_told,
    "retention.gid": odd(st.none(), gids),
    "direct.gid": texts | st.builds(gid_of, st.sampled_from(UIDS), st.sampled_from(UIDS)),
    "direct.uid": st.sampled_from(UIDS) | texts,
}
"""What means something else in one class or function."""

Lookup = Callable[[Known], Any]


def resolved(value: Any, lookup: Lookup) -> Any:
    """Return a value with what is known in the place of its references."""
    if isinstance(value, Known):
        return lookup(value)
    if isinstance(value, list):
        return [resolved(each, lookup) for each in value]
    if isinstance(value, dict):
        return {name: resolved(each, lookup) for name, each in value.items()}
    if type(value) is tuple:
        return tuple(resolved(each, lookup) for each in value)
    if isinstance(value, Receipt | Message | HistoryPage):
        return _resolved_value(value, lookup)
    return value


def _resolved_value(value: Receipt | Message | HistoryPage, lookup: Lookup) -> Any:
    if isinstance(value, HistoryPage):
        return replace(value, messages=resolved(value.messages, lookup))
    changed = {name: resolved(getattr(value, name), lookup) for name in ("gid", "msgid")}
    return type(value)(**{**{name: getattr(value, name) for name in value.__slots__}, **changed})
