"""Positions of a user in many groups, and of many members of one: asked at once, they are the same as one by one."""

from collections.abc import Iterator
from typing import Any

import pytest

from imcore import Chat
from imcore.errors import ImError, NotMember, UnknownGroup
from imcore.operations import positions
from imcore.operations.performer import perform_in_redis
from imcore.streams.calls import group_calls
from imcore.streams.calls.group_calls import Position
from tests.helpers.checked_group import GID, UIDS, checked_group, nth

EVERYBODY = (*UIDS, "nobody")


@pytest.fixture
def chat(valkey: str, sqlite_url: str) -> Iterator[Chat]:
    """A trimmed group with marks, what was read in private, a recall; one without messages, and one that is gone."""
    with checked_group(valkey, sqlite_url) as chat:
        chat.create_group("empty", UIDS)
        yield chat


GIDS = (GID, "other", "empty", "no such group")


def by_itself(chat: Chat, gid: str, uid: str, *, for_others: bool) -> Position | ImError:
    client = chat.system.client
    [answer] = client.call_each([group_calls.position(client.space, gid, uid, for_others=for_others)])
    return answer


def same(one: Position | ImError, other: Position | ImError) -> bool:
    return (type(one), str(one)) == (type(other), str(other))


@pytest.mark.parametrize("uid", EVERYBODY)
def test_positions_in_many_groups_are_those_in_each(chat: Chat, uid: str) -> None:
    space = chat.system.client.space

    found, _ = perform_in_redis(chat.system.client, positions.positions_in(space, uid, GIDS))

    alone = [by_itself(chat, gid, uid, for_others=False) for gid in GIDS]
    assert all(map(same, found, alone))
    assert {type(each) for each in found} <= {Position, NotMember, UnknownGroup}
    assert isinstance(found[-1], UnknownGroup)


@pytest.mark.parametrize("gid", GIDS[:-1])
def test_positions_of_many_members_are_those_of_each(chat: Chat, gid: str) -> None:
    client = chat.system.client

    found = client.call(group_calls.positions_of(client.space, gid, EVERYBODY))

    assert all(map(same, found, [by_itself(chat, gid, uid, for_others=True) for uid in EVERYBODY]))


def test_members_are_listed_as_each_is(chat: Chat) -> None:
    chat.ack("cy", GID, nth(chat, 30))

    assert list(chat.members(GID)) == [chat.member(GID, uid) for uid in ("ann", "bob", "cy")]


def test_a_group_that_is_damaged_hides_no_other(chat: Chat) -> None:
    client: Any = chat.system.client
    client.driver.delete(client.space.group("other").stream, client.space.group("other").acked)
    client.driver.set(client.space.group("other").acked, "mine")

    found, _ = perform_in_redis(client, positions.positions_in(client.space, "ann", GIDS))

    assert [isinstance(each, Position) for each in found] == [True, False, True, False]
    assert same(found[1], by_itself(chat, "other", "ann", for_others=False))


def test_many_groups_take_few_calls(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        chat.create_group(f"team {number}", ["ann"])
    client: Any = chat.system.client
    asked: list[str] = []
    each = client.call_each
    monkeypatch.setattr(
        client, "call_each", lambda batch, **kw: asked.extend(c.function for c in batch) or each(batch, **kw)
    )

    assert len(chat.unread("ann")) == 63

    assert 2 <= asked.count("im_unread_in") <= 4
    assert "im_unread" not in asked
