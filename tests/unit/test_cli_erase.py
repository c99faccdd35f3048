"""The command `im user erase`."""

import json
from typing import Any

import pytest

from imcore import Chat
from imcore.cli.app import Invocation
from imcore.model.values import ErasedUser
from tests.helpers.cli import im


@pytest.fixture(autouse=True)
def _own_system(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    chat.create_group("team", ["ann", "bob"])
    chat.send("team", "hi", sender_uid="ann")
    monkeypatch.setattr(Invocation, "connect", lambda _: chat.system)
    monkeypatch.setattr(chat.system, "close", lambda: None)


def test_it_asks_first(chat: Chat) -> None:
    result = im("user", "erase", "ann")
    assert result.exit_code == 1
    assert "Erase 'ann'" in result.stderr
    assert "--yes" in result.stderr
    assert chat.groups_of("ann") == ["team"]


def test_it_says_how_many_messages_that_concerns(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def erase(system: Any, uid: str, **_: Any) -> Any:
        called.append(uid)
        return ErasedUser(uid, 1)

    monkeypatch.setattr("imcore.admin.erasure.erase_user", erase)
    result = im("user", "erase", "ann", "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"uid": "ann", "messages": 1}
    assert called == ["ann"]


def test_a_name_that_cannot_be() -> None:
    result = im("user", "erase", "a\tb", "--yes")
    assert result.exit_code == 1
    assert "uid" in result.stderr


@pytest.mark.parametrize("command", [("history", "bob", "team"), ("status", "team")])
def test_people_are_told_why_a_text_is_missing(chat: Chat, command: tuple[str, ...]) -> None:
    chat.erase_user("ann")
    assert "(erased)" in im(*command).stdout
