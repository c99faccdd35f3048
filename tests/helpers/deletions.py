"""Groups that are deleted: what is in them, what may be left of them, and deletions whose process dies."""

import pytest

from imcore import Chat, Draft
from imcore.errors import ImError
from imcore.repair.check import check
from imcore.sql import deletion as sql_deletion
from imcore.streams import dead_letters
from tests.helpers.rows import stored

GID = "team"
UIDS = ["ann", "bob", "cy"]


def talk(chat: Chat, gid: str = GID, messages: int = 20) -> None:
    sent = chat.send_many(
        gid, [Draft(UIDS[number % 3], f"message {number}", f"c{number}") for number in range(messages)]
    )
    first = sent[0]
    assert not isinstance(first, ImError)
    chat.ack("bob", gid)
    chat.recall(gid, first.msgid, by="ann")
    chat.add_members(gid, ["dan"])
    chat.remove_members(gid, ["cy"])


def assert_gone(chat: Chat, gid: str = GID) -> None:
    """Neither side has anything of it, and nothing differs."""
    assert not [key for key in chat.system.client.driver.keys("*") if key.endswith(f":{gid}".encode())]
    assert gid not in {each for uid in UIDS for each in chat.groups_of(uid)}
    assert gid not in stored(chat.system.database).gids
    assert list(check(chat.system)) == []
    assert list(dead_letters.list_dead(chat.system.client)) == []


def begin_and_die(chat: Chat, gid: str = GID) -> None:
    """Hide a group; the process dies with the next step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_deletion, "begin", die)
        patch.setattr("imcore.streams.calls.repair_calls.release", die)
        with pytest.raises(ZeroDivisionError):
            chat.delete_group(gid)
    locks = chat.system.client.space.group(gid).group_locks
    holder = chat.system.client.query("HGET", locks, gid).decode().split()[0]
    chat.system.client.execute_once("HSET", locks, gid, f"{holder} 1 5000")


def die(*_: object, **__: object) -> None:
    raise ZeroDivisionError
