"""Exports on real servers: real chat, and large groups whose members come and go meanwhile."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from imcore import Chat
from imcore.admin.retention import trim
from imcore.cli.output import to_json
from imcore.exporter.exporter import Export
from imcore.importer.importer import ImportSummary, import_events
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.helpers.chat_data import ChatFile, chat_files
from tests.helpers.workers import store

UIDS = [f"user{number:04}" for number in range(3000)]
"""More than one page of a scan has."""


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url)


@pytest.fixture
def copies(tmp_path: Path) -> Callable[[], Any]:
    """Makes another, empty system in a `with`."""

    @contextmanager
    def new() -> Iterator[Chat]:
        client = RedisClient(fakeredis.FakeRedis(server=fakeredis.FakeServer()))
        with Chat(System(client, Database.connect(f"sqlite:///{tmp_path / 'copy.db'}"), Settings.from_env({}))) as copy:
            yield copy

    return new


@pytest.mark.parametrize("is_trimmed", [False, True])
@pytest.mark.parametrize("file", chat_files(), ids=str)
def test_real_chat_is_the_same_after_an_export_and_an_import(
    chat: Chat, copies: Callable[[], Any], file: ChatFile, is_trimmed: bool
) -> None:
    # Given
    import_lines(chat, file.lines())
    store(chat)
    if is_trimmed:
        trim(chat.system, keep_messages=20)
    gids = [group.gid for group in chat.groups()]
    chat.set_group(gids[0], receipts="counts", asked_by="members")
    exported = {gid: lines_of(chat, gid) for gid in gids}
    with copies() as copy:
        # When
        for lines in exported.values():
            import_lines(copy, lines)
        # Then
        for gid in gids:
            assert seen(copy, gid) == seen(chat, gid)
            assert lines_of(copy, gid) == exported[gid]
            assert copy.group_policy(gid) == chat.group_policy(gid)
            assert import_lines(copy, exported[gid]) == ImportSummary()


@pytest.mark.parametrize("users", [("ann", "bob"), ("a" * 100, "b" * 100)], ids=["plain", "hashed"])
@pytest.mark.parametrize("is_trimmed", [False, True])
@pytest.mark.parametrize("of_user", [False, True], ids=["group", "user"])
def test_a_chat_whose_other_user_was_erased_can_be_imported(
    chat: Chat, copies: Callable[[], Any], users: tuple[str, str], of_user: bool, is_trimmed: bool
) -> None:
    # Given
    gone, bob = users
    chat.system.database.upgrade()
    chat.send_direct(bob, "hi", sender_uid=gone, client_msgid="1")
    chat.send_direct(gone, "hello", sender_uid=bob, client_msgid="2")
    recalled = chat.send_direct(bob, "oops", sender_uid=gone)
    chat.recall(recalled.gid, recalled.msgid, by=gone)
    bye = chat.send_direct(bob, "bye", sender_uid=gone, client_msgid="3")
    chat.ack(bob, bye.gid, bye.msgid)  # what is unread of an erased user is unread for nobody in a copy: it is recalled
    chat.erase_user(gone)
    [gid] = chat.groups_of(bob)
    chat.send(gid, "are you there?", sender_uid=bob)
    if is_trimmed:
        store(chat)
        trim(chat.system, keep_messages=0)
    export = (lambda of: user_lines_of(of, bob)) if of_user else (lambda of: lines_of(of, gid))
    exported = export(chat)
    with copies() as copy:
        # When
        import_lines(copy, exported)
        # Then
        assert [(member.uid, member.unread) for member in copy.members(gid)] == [(bob, chat.member(gid, bob).unread)]
        assert texts(copy, bob, gid) == texts(chat, bob, gid)
        assert [text for _, text in texts(copy, bob, gid)] == ["", "hello", "", "", "are you there?"]
        assert export(copy) == exported
        assert import_lines(copy, exported) == ImportSummary()
        assert export(copy) == exported


def texts(chat: Chat, uid: str, gid: str) -> list[tuple[str, str]]:
    """Senders and texts of the messages as a member sees them; those of erased users have no text."""
    messages = chat.history(uid, gid).messages
    return [(each.sender_uid, each.content) for each in messages if each.recalls is None]


def import_lines(chat: Chat, lines: list[bytes]) -> ImportSummary:
    errors: list[tuple[int, str]] = []
    summary = import_events(chat, lines, on_error=lambda number, reason: errors.append((number, reason)))
    assert errors == []
    return summary


def lines_of(chat: Chat, gid: str) -> list[bytes]:
    return [f"{to_json(event)}\n".encode() for event in Export(chat).group(gid)]


def user_lines_of(chat: Chat, uid: str) -> list[bytes]:
    return [f"{to_json(event)}\n".encode() for event in Export(chat).user(uid)]


def seen(chat: Chat, gid: str) -> Any:
    """The messages with their tallies, and the members with their unread counts."""
    tallies = chat.status(gid, limit=0)
    messages = [(t.message.sender_uid, t.message.content, t.message.client_msgid, t.read, t.unread) for t in tallies]
    return messages, [(member.uid, member.unread) for member in chat.members(gid)]


@pytest.mark.parametrize("kind", ["valkey", "cluster"])
@pytest.mark.parametrize("seed", range(3))
def test_members_who_stay_are_in_the_export_of_a_large_group_once(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    chance = random.Random(seed)
    settings = replace(Settings.from_env({}, data_dir=str(tmp_path)), redis_url=request.getfixturevalue(kind))
    with Chat.connect(settings=settings) as chat, Chat.connect(settings=settings) as other:
        chat.system.client.upgrade()
        chat.create_group("crowd", UIDS)
        message = chat.send("crowd", "hi", sender_uid=UIDS[-1], client_msgid="1")
        readers = set(chance.sample(UIDS[:-1], 1000)) | {UIDS[-1]}
        chat.ack_many("crowd", [(uid, message.msgid) for uid in readers])
        gone: set[str] = set()
        call_each = chat.system.client.call_each

        def changing(*args: Any, **more: Any) -> Any:
            """Between two calls some leave, of whom some come back, and somebody sends."""
            leavers = chance.sample(UIDS[:-1], 20)
            gone.update(leavers)
            other.remove_members("crowd", leavers)
            other.add_members("crowd", leavers[:10])
            if chance.random() < 0.5:
                other.send("crowd", "more", sender_uid=UIDS[-1], client_msgid=str(chance.random()))
            return call_each(*args, **more)

        # When
        monkeypatch.setattr(chat.system.client, "call_each", changing)
        events = list(Export(chat).group("crowd"))
    # Then everybody joined once before the first message; who read it has acked it, and nobody else
    first = [event["client_msgid"] if "content" in event else None for event in events].index("1")
    joins = [event["uid"] for event in events[:first] if event["type"] == "join"]
    leaves = [event["uid"] for event in events[:first] if event["type"] == "leave"]
    assert set(UIDS) - gone <= set(joins) - set(leaves)
    acks = {event["uid"] for event in events if event["type"] == "ack" and event["client_msgid"] == "1"}
    assert readers - gone <= acks | {UIDS[-1]}
    assert acks <= readers
