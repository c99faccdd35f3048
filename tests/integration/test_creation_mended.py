"""A group that comes back from SQL while it is created again, and creations that somebody has spoiled by hand."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from imcore.chat import Chat
from imcore.errors import GroupExists, ImError
from imcore.operations import creation
from imcore.repair import watch
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.streams.calls import creation_calls
from imcore.streams.calls.creation_calls import LOST
from imcore.util.backoff import ThrottledLog
from tests.helpers.persist_runs import new_persist

MEMBERS = [f"u{number:03}" for number in range(150)]
STRANGERS = [f"stranger{number:03}" for number in range(150)]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, partitions=1, lease_ms=100, retry_ms=1, max_deliveries=2)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


@pytest.fixture
def server(valkey: str, chat: Chat) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(valkey) as client:
        yield client


def drain(chat: Chat) -> None:
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    worker.step()
    while not worker.drained():
        worker.step()
    worker.close()


def begun(redis_client: Any, uids: Sequence[str], *, added: int) -> list[Callable[[], object]]:
    """Begin to create the group, and add some of its members; return the steps that are left."""
    space, token = redis_client.space, creation._token(uids)
    assert redis_client.call(creation_calls.begin(space, "team", token)) is None
    steps: list[Callable[[], object]] = [
        *(
            lambda at=at: redis_client.call(creation_calls.add(space, "team", token, uids[at : at + 50]))
            for at in range(0, len(uids), 50)
        ),
        lambda: redis_client.call(creation_calls.end(space, "team", token, len(uids))),
    ]
    for step in steps[:added]:
        step()
    return steps[added:]


def bring_back(chat: Chat, how: str) -> None:
    if how == "rebuild":
        rebuild(chat.system, yes=True, adopt=True)
    else:
        drain(chat)  # what is there is older than SQL: the worker reconciles


def lose(server: "redis.Redis", how: str, before: dict[bytes, bytes]) -> None:
    """Lose all data, or those after a moment."""
    server.flushall()
    for key, value in before.items() if how == "reconciliation" else ():
        server.restore(key, 0, value)


def dump(server: "redis.Redis") -> dict[bytes, bytes]:
    return {key: server.dump(key) for key in server.keys("*")}


@pytest.mark.parametrize("added", [0, 1, 2, 3])
@pytest.mark.parametrize("uids", [MEMBERS, STRANGERS], ids=["the same", "others"])
@pytest.mark.parametrize("how", ["rebuild", "reconciliation"])
def test_rebuilt_group_is_unchanged_by_a_creation_meanwhile(
    chat: Chat, other: Chat, server: "redis.Redis", how: str, uids: list[str], added: int
) -> None:
    # Given a group that SQL knows, and that Redis has lost
    chat.create_group("other", ["ann"])
    drain(chat)
    before = dump(server)
    chat.create_group("team", MEMBERS)
    sent = [chat.send("team", text, sender_uid="u000").msgid for text in ("one", "two")]
    drain(chat)
    lose(server, how, before)
    # When somebody creates it again, and it comes back in the midst of that
    left = begun(other.system.client, uids, added=added)
    bring_back(chat, how)

    # Then it is there as it was, for everybody
    def is_as_it_was() -> None:
        assert [(each.msgid, each.seq) for each in chat.pull("u001", "team")] == [(sent[0], 1), (sent[1], 2)]
        assert {member.uid for member in chat.members("team")} == set(MEMBERS)
        assert chat.groups_of("u001") == ["team"]
        assert chat.groups_of("stranger000") == []
        assert list(check(chat.system)) == []

    is_as_it_was()
    # And no step of the creation changes that
    assert [step() for step in left] == [LOST] * len(left)
    is_as_it_was()
    if uids == MEMBERS:
        assert other.create_group("team", uids).messages == 2
    else:
        with pytest.raises(GroupExists):
            other.create_group("team", uids)
    is_as_it_was()
    assert chat.send("team", "three", sender_uid="u001").seq == 3
    assert server.hlen(chat.system.client.space.group("team").creating) == 0


@pytest.mark.parametrize("seed", range(8))
def test_random_moments(chat: Chat, other: Chat, server: "redis.Redis", seed: int) -> None:
    """Steps of creations, of a worker's reconciliation and of a rebuild, in any order: the group is what SQL has."""
    chance = random.Random(seed)
    chat.create_group("team", MEMBERS)
    sent = chat.send("team", "one", sender_uid="u000")
    drain(chat)
    server.flushall()
    uids = chance.choice([MEMBERS, STRANGERS])
    done: list[object] = []
    left: list[Callable[[], object]] = []
    call_many = chat.system.client.call_many

    def and_somebody_creates(batch: Sequence[Any], **options: Any) -> list[Any]:
        """Let a step of a creation come before any round trip of the repair."""
        nonlocal left
        for _ in range(chance.randrange(3)):
            if left:
                done.append(left.pop(0)())
            elif chance.random() < 0.5:
                try:
                    left = begun(other.system.client, uids, added=0)
                except (ImError, AssertionError):
                    left = []
        return call_many(batch, **options)

    chat.system.client.call_many = and_somebody_creates  # type: ignore[method-assign, assignment]
    rebuild(chat.system, yes=True, adopt=True)
    chat.system.client.call_many = call_many  # type: ignore[method-assign]
    done += [step() for step in left]
    # A creation that ended before the group came back was one: the two are merged.
    members = {*MEMBERS, *(uids if len(uids) in done else ())}
    assert [each.msgid for each in chat.pull("u001", "team")] == [sent.msgid]
    assert {member.uid for member in chat.members("team")} == members
    assert chat.groups_of("u001") == ["team"]
    drain(chat)
    assert list(check(chat.system)) == []


SPOILED: dict[str, Callable[["redis.Redis", Any], object]] = {
    "a name that is no UTF-8": lambda server, k: server.zadd(k.joined, {b"\xff": 0}),
    "an empty name": lambda server, k: server.zadd(k.joined, {b"": 0}),
    "a long name": lambda server, k: server.zadd(k.joined, {b"x" * 300: 0}),
    "a name with NUL": lambda server, k: server.zadd(k.joined, {b"a\x00b": 0}),
    "joined": lambda server, k: server.set(k.joined, "by hand"),
    "creating": lambda server, k: server.set(k.creating, "by hand"),
    "untold": lambda server, k: server.set(k.unnotified, "by hand"),
    "a gid that is no UTF-8": lambda server, k: server.hset(
        k.creating, b"\xff", f"t {int(time.time() * 1000) - 20_000} 10000"
    ),
    "an odd creation": lambda server, k: server.hset(k.creating, "odd", "by hand"),
    "online": lambda server, k: server.set(k.journal.replace("journal", "online"), "by hand"),
    "groups": lambda server, k: server.sadd(k.groups, b"\xff"),
    "mending": lambda server, k: server.hset(k.group_locks, b"\xff", "by hand"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_creations_keep_no_worker_from_storing(chat: Chat, server: "redis.Redis", what: str) -> None:
    chat.create_group("team", ["ann", "bob"])
    chat.create_group("home", ["ann"])
    SPOILED[what](server, chat.system.client.space.group("team"))
    sent = chat.send("home", "hi", sender_uid="ann")
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    give_up = time.monotonic() + 10
    while not (stored := chat.system.database.messages_after("home", 0)) and time.monotonic() < give_up:
        try:
            worker.step()
        except ImError:
            time.sleep(0.01)
    assert [row.seq for row in stored] == [sent.seq]
    worker.close()


def test_abandoned_creation_is_undone_without_its_stream(
    chat: Chat, server: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    k = chat.system.client.space.group("team")
    begun(chat.system.client, MEMBERS, added=2)
    server.delete(k.stream)
    server.hset(k.creating, "team", f"{creation._token(MEMBERS)} {int(time.time() * 1000) - 1} 10000")
    server.zadd(k.acked, {b"\xff": 0})

    watch.end_abandoned(chat.system.client, ThrottledLog(time.monotonic))

    assert (chat.groups_of("u001"), server.hlen(k.creating)) == ([], 0)
    assert server.zcard(k.acked) == server.zcard(k.joined) == 0
    assert "its creation was given up, and is undone" in caplog.text
    assert chat.create_group("team", STRANGERS).members == len(STRANGERS)
