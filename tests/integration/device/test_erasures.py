"""A local database loses what it has of an erased user at the next session."""

from pathlib import Path

import pytest

from imcore import Chat
from imcore.admin import retention
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.model.erased import is_alias
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql import sqlite_file
from tests.helpers.devices import listen, texts
from tests.helpers.leaks import files_with
from tests.helpers.workers import run_workers, store

ANN = "annika-Ω"
TEXT = "SECRET-4711"


@pytest.fixture
def chat(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setattr(sqlite_file, "EMPTY_AGAIN_S", 0.0)
    chat.system.database.upgrade()
    chat.create_group("team", [ANN, "bob"])
    chat.create_group("old", [ANN, "bob"])
    for gid in ("team", "old"):
        for number in range(3):
            chat.send(gid, f"{TEXT} {number}", sender_uid=ANN, client_msgid=f"{gid} {number}")
            chat.send(gid, f"hello {number}", sender_uid="bob")
    chat.send_direct("bob", TEXT, sender_uid=ANN)
    chat.send_direct(ANN, "hi", sender_uid="bob")
    return chat


@pytest.fixture
def folder(settings: Settings) -> Path:
    return settings.data_dir / "clients"


def senders(local: LocalDatabase, gid: str) -> list[str]:
    return [line.sender_uid for line in local.log(gid)]


@pytest.mark.parametrize("trimmed", [False, True], ids=["in Redis", "in SQL"])
def test_a_login_removes_name_and_texts(
    bob: Device, local: LocalDatabase, chat: Chat, folder: Path, trimmed: bool
) -> None:
    # Given all of it here, of a group that bob has left, too
    bob.sync()
    chat.remove_members("old", ["bob"])
    before = {gid: texts(local, gid) for gid in ("team", "old")}
    assert files_with(TEXT, folder)

    # When
    store(chat)
    if trimmed:
        retention.trim(chat.system, keep_messages=0)
    chat.erase_user(ANN)
    bob.sync()

    # Then
    for gid, said in before.items():
        assert texts(local, gid) == ["" if TEXT in text else text for text in said]
        assert [is_alias(uid) for uid in senders(local, gid)] == [TEXT in text for text in said]
        assert not any(line.recalled for line in local.log(gid))
    [gid] = [gid for gid in chat.groups_of("bob") if gid != "team"]
    assert texts(local, gid) == ["", "hi"]
    local.close()
    for word in (TEXT, ANN):
        assert files_with(word, folder) == []


def test_a_session_removes_them_too(bob: Device, local: LocalDatabase, chat: Chat, folder: Path) -> None:
    listen(bob, 8)
    chat.erase_user(ANN)
    looks = iter(range(100))
    listen(bob, lambda: next(looks) > 3)
    assert texts(local, "team") == ["", "hello 0", "", "hello 1", "", "hello 2"]
    local.close()
    for word in (TEXT, ANN):
        assert files_with(word, folder) == []


def test_each_erasure_is_noticed_once(
    bob: Device, local: LocalDatabase, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob.sync()
    chat.erase_user(ANN)
    for _ in range(2):  # the second time: the chat that has another gid now
        bob.sync()
    asked: list[str] = []
    monkeypatch.setattr("imcore.device.erasures.erased_among", lambda gid, _: asked.append(gid))
    bob.sync()
    assert asked == []
    monkeypatch.undo()
    # And a second one is noticed, too
    chat.add_members("team", ["cy"])
    chat.send("team", "of cy", sender_uid="cy")
    bob.sync()
    assert texts(local)[-1] == "of cy"
    chat.erase_user("cy")
    bob.sync()
    assert texts(local)[-1] == ""


def test_after_a_loss_of_redis_too(bob: Device, local: LocalDatabase, chat: Chat, other: Chat) -> None:
    bob.sync()
    chat.erase_user(ANN)
    run_workers(chat)
    chat.system.client.driver.flushall()
    rebuild(other.system)
    bob.sync()
    assert texts(local) == ["", "hello 0", "", "hello 1", "", "hello 2"]


@pytest.mark.parametrize("first", ["erased", "deleted"])
def test_a_deleted_group_goes(bob: Device, local: LocalDatabase, chat: Chat, folder: Path, first: str) -> None:
    bob.sync()
    for what in (first, "deleted" if first == "erased" else "erased"):
        if what == "erased":
            chat.erase_user(ANN)
        else:
            chat.delete_group("old")
    assert texts(local, "old")
    bob.sync()
    assert texts(local, "old") == []
    assert texts(local, "team") != []
    assert files_with(TEXT, folder) == []
