"""Rewrites on fakeredis: which texts leave a stream, when, and what stays as it is."""

from typing import Any

import pytest

from imcore import Chat, Draft
from imcore.errors import UnknownGroup
from imcore.repair import rewriting
from imcore.repair.check import check
from imcore.repair.rewriting import Rewriting, rewrite, rewrite_all
from imcore.streams.calls import repair_calls, rewrite_calls
from imcore.streams.calls.repair_calls import GroupLock
from tests.helpers.workers import run_workers

GID = "team"


@pytest.fixture
def chat(chat: Chat) -> Chat:
    """A group of three in which ann and bob have written."""
    chat.create_group(GID, ["ann", "bob", "cy"])
    chat.send_many(GID, [Draft("ann", f"secret {number}", f"c{number}", meta={"n": number}) for number in range(5)])
    chat.send(GID, "hello", sender_uid="bob")
    return chat


def nth(chat: Chat, number: int) -> str:
    return chat.status(GID, limit=0)[number].message.msgid


def stream(chat: Chat) -> list[tuple[bytes, dict[bytes, bytes]]]:
    entries: list[Any] = chat.system.client.query("XRANGE", chat.system.client.space.group(GID).stream, "-", "+")
    return entries


def groups(chat: Chat) -> list[dict[str, Any]]:
    infos: list[Any] = chat.system.client.query("XINFO GROUPS", chat.system.client.space.group(GID).stream)
    return infos


def waits(chat: Chat) -> list[str]:
    return rewriting.due(chat.system.client, 0, 10)


def test_only_the_text_of_a_recalled_message_leaves_the_stream(chat: Chat) -> None:
    # Given members who are at different places, and a message that is recalled
    chat.ack("bob", GID, nth(chat, 2))
    chat.ack("cy", GID)
    chat.recall(GID, nth(chat, 1), by="ann")
    entries, followers = stream(chat), groups(chat)
    assert entries[1][1][b"text"] == b"secret 1"

    # When the group is rewritten
    assert rewrite_all(chat.system.client) == 1

    # Then that text and its meta are gone, and all else is as it was
    changed = entries[1][0], {k: v for k, v in entries[1][1].items() if k != b"meta"} | {b"text": b""}
    assert stream(chat) == [entries[0], changed, *entries[2:]]
    assert groups(chat) == followers
    assert waits(chat) == []
    run_workers(chat)
    assert list(check(chat.system)) == []


def test_what_is_not_stored_yet_can_be_stored_afterwards(chat: Chat) -> None:
    chat.recall(GID, nth(chat, 1), by="ann")
    before = chat.status(GID, limit=0)
    rewrite_all(chat.system.client)
    assert chat.status(GID, limit=0) == before

    run_workers(chat)

    stored = chat.system.database.messages_after(GID, 0)
    assert [row.content for row in stored] == ["secret 0", "", "secret 2", "secret 3", "secret 4", "hello", ""]
    assert stored[1].client_msgid == "c1"
    assert list(check(chat.system)) == []


def test_one_rewrite_serves_all_recalls(chat: Chat) -> None:
    for number in (0, 3, 4):
        chat.recall(GID, nth(chat, number), by="ann")
    assert waits(chat) == [GID]
    assert rewrite_all(chat.system.client) == 1
    assert [fields[b"text"] for _, fields in stream(chat) if b"secret" in fields[b"text"]] == [b"secret 1", b"secret 2"]
    assert rewrite_all(chat.system.client) == 0


def test_a_worker_lets_recalls_wait_for_others(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    client = chat.system.client
    chat.recall(GID, nth(chat, 0), by="ann")
    worker = Rewriting(client)
    assert worker.look() == 0
    monkeypatch.setattr(rewriting, "WAIT_MS", 0)
    assert worker.look() == 0  # it has looked just now
    assert Rewriting(client).look() == 1
    assert rewriting.WAIT_MS + 1000 * rewriting.LOOK_EVERY_S < 60_000


def test_a_wait_that_began_in_the_future_is_over(chat: Chat) -> None:
    chat.recall(GID, nth(chat, 0), by="ann")
    chat.system.client.execute_once("ZADD", chat.system.client.space.group(GID).rewrites, 9e15, GID)
    assert Rewriting(chat.system.client).look() == 1


def test_a_group_under_repair_waits(chat: Chat) -> None:
    # Given a repair whose process has died
    client, k = chat.system.client, chat.system.client.space.group(GID)
    chat.recall(GID, nth(chat, 0), by="ann")
    repair = GroupLock(k, "repair")
    assert client.call(repair_calls.lock(repair))
    client.call(repair_calls.release(repair, done=False))

    # Then nothing is rewritten before it is done again
    assert rewrite_all(client) == 0
    assert waits(chat) == [GID]
    assert client.call(repair_calls.lock(repair))
    client.call(repair_calls.release(repair, done=True))
    assert rewrite_all(client) == 1


def test_a_rewrite_that_is_killed_is_no_repair_that_has_begun(chat: Chat) -> None:
    # Given a rewrite that ends in the midst
    client, k = chat.system.client, chat.system.client.space.group(GID)
    chat.recall(GID, nth(chat, 0), by="ann")
    run_workers(chat)
    lock = rewrite_calls.new_lock(k)
    begun = client.call(rewrite_calls.begin(lock))
    assert begun
    client.call(repair_calls.copy(lock, last=begun.last_id, count=3))

    # Then nothing differs, another one waits for its end, and then begins
    assert list(check(chat.system)) == []
    assert rewrite(client, GID) is False
    client.execute_once("HSET", k.group_locks, GID, f"{lock.token} 1 5000")
    assert rewrite(client, GID)
    assert list(check(chat.system)) == []
    assert client.query("EXISTS", k.shadow, k.group_locks, k.rewrites) == 0


def test_a_group_that_is_gone_waits_no_more(chat: Chat) -> None:
    client, k = chat.system.client, chat.system.client.space.group("gone")
    client.call(rewrite_calls.wait(k))
    assert rewriting.due(client, 0, 10) == ["gone"]
    with pytest.raises(UnknownGroup):
        rewrite(client, "gone")
    assert rewriting.due(client, 0, 10) == []


def test_what_fails_is_logged_and_stops_nothing(
    chat: Chat, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a group with a stream that somebody has replaced, and another one
    monkeypatch.setattr(rewriting, "WAIT_MS", 0)
    client, broken = chat.system.client, chat.system.client.space.group("broken")
    chat.create_group("broken", ["ann"])
    client.execute_once("DEL", broken.stream)
    client.execute_once("SET", broken.stream, "x")
    client.call(rewrite_calls.wait(broken))
    chat.recall(GID, nth(chat, 0), by="ann")

    # Then that one is rewritten
    assert Rewriting(client).look() == 1
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "recalled texts stay in Redis for now"
    ]
    assert waits(chat) == ["broken"]
