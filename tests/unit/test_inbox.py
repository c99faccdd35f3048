"""The inbox on fakeredis and SQLite: order, counts and pages, whatever is recalled, trimmed, marked or empty."""

import time
from typing import Any

import pytest

from imcore import Chat, InboxEntry, Message
from imcore import msgid as msgids
from imcore.errors import InvalidInput
from imcore.operations import inbox
from imcore.streams.calls import message_calls
from tests.helpers import talk
from tests.helpers.deadline import wait_until
from tests.helpers.talk import leave_to_sql
from tests.helpers.workers import store


def say(chat: Chat, *texts: str, **how: str) -> list[Message]:
    """Send each text, and let the next messages be of a later millisecond."""
    sent = talk.say(chat, *texts, **how)
    said_at = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > said_at)
    return sent


def lines(chat: Chat, uid: str = "ann", **how: Any) -> list[tuple[str, int, str | None]]:
    """The gid, the unread count and the content of each entry."""
    entries = chat.inbox(uid, **how).entries
    return [(entry.gid, entry.unread, entry.message and entry.message.content) for entry in entries]


def entry(chat: Chat, gid: str = "team", uid: str = "ann") -> InboxEntry:
    [entry] = [each for each in chat.inbox(uid).entries if each.gid == gid]
    return entry


@pytest.fixture
def chat(chat: Chat) -> Chat:
    for gid in ("b", "a", "team", "more"):
        chat.create_group(gid, ["ann", "bob"])
    return chat


def test_the_latest_message_comes_first_and_empty_groups_last_by_gid(chat: Chat) -> None:
    say(chat, "1", "2", gid="more", sender="bob")
    say(chat, "3", gid="team", sender="ann")
    say(chat, "4", gid="more", sender="ann")

    assert lines(chat) == [("more", 3 - 1, "4"), ("team", 0, "3"), ("a", 0, None), ("b", 0, None)]
    page = chat.inbox("ann")
    assert (page.groups, page.unread_groups, page.unread, page.next) == (4, 1, 2, None)
    assert chat.inbox("dan").entries == ()


def test_an_entry_is_of_one_moment(chat: Chat) -> None:
    first, second, third = say(chat, "1", "2", "3", sender="bob")
    chat.ack("ann", "team", first.msgid)
    assert entry(chat) == InboxEntry("team", 2, False, second.msgid, third)

    chat.mark_unread("ann", "team", first.msgid)
    assert entry(chat) == InboxEntry("team", 3, True, first.msgid, third)

    chat.ack("ann", "team", private=True)
    assert entry(chat) == InboxEntry("team", 0, False, None, third)


def test_recalled_messages_and_those_from_before_the_join_do_not_count(chat: Chat) -> None:
    sent = say(chat, *"abcdefgh", sender="bob")
    for message in sent[2:]:
        chat.recall("team", message.msgid, by="bob")
    assert lines(chat)[0] == ("team", 2, "b")

    for message in sent[:2]:
        chat.recall("team", message.msgid, by="bob")
    assert lines(chat)[2:] == [("more", 0, None), ("team", 0, None)]

    say(chat, "old", sender="bob")
    chat.add_members("team", ["dan"])
    assert lines(chat, "dan") == [("team", 0, None)]
    say(chat, "new", sender="bob")
    chat.recall("team", entry(chat, uid="dan").message.msgid, by="bob")  # type: ignore[union-attr]
    assert lines(chat, "dan") == [("team", 0, None)]
    assert lines(chat)[0] == ("team", 1, "old")


@pytest.mark.parametrize("trimmed", range(1, 15))
def test_it_is_the_same_at_every_trim_point(chat: Chat, trimmed: int) -> None:
    say(chat, "a", "b", sender="bob")
    chat.add_members("team", ["dan"])
    sent = say(chat, "c", "d", sender="ann") + say(chat, *"efgh", sender="bob")
    chat.ack("dan", "team", sent[1].msgid)
    for message in (sent[2], *sent[-2:]):
        chat.recall("team", message.msgid, by="bob")
    say(chat, "i", gid="more", sender="bob")
    before = {uid: chat.inbox(uid) for uid in ("ann", "bob", "dan")}
    assert entry(chat, uid="dan") == InboxEntry("team", 1, False, sent[3].msgid, sent[3])

    everything = chat.status("team", limit=0)
    leave_to_sql(chat, everything[min(trimmed, len(everything)) - 1].message.msgid)

    assert {uid: chat.inbox(uid) for uid in before} == before


def test_only_sql_knows_the_newest_message_of_a_group(chat: Chat) -> None:
    say(chat, "older", gid="a", sender="bob")
    say(chat, *map(str, range(120)), sender="bob")
    newer = say(chat, "newer", gid="b", sender="bob")
    sent = chat.history("ann", "team", limit=200).messages
    leave_to_sql(chat, sent[-1].msgid)
    for message in sent[1:]:
        chat.recall("team", message.msgid, by="bob")  # no worker stores it

    assert lines(chat) == [("b", 1, "newer"), ("team", 1, "0"), ("a", 1, "older"), ("more", 0, None)]
    assert entry(chat).first_unread_msgid == sent[0].msgid
    assert lines(chat, limit=1, after=f"{newer[0].msgid}:b") == [("team", 1, "0")]

    chat.recall("team", sent[0].msgid, by="bob")
    assert lines(chat)[2:] == [("more", 0, None), ("team", 0, None)]


def test_sql_is_asked_only_where_it_is_needed(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    for query in (inbox.MessagesAt, inbox.FirstsOfOthers, inbox.SeqsAt):
        run = query.run
        monkeypatch.setattr(query, "run", lambda self, database, run=run: (asked.append(self), run(self, database))[1])
    for gid in ("team", "a", "b"):
        sent = say(chat, "1", "2", gid=gid, sender="bob")
        chat.ack("ann", gid, sent[0 if gid == "team" else 1].msgid)
        leave_to_sql(chat, sent[-1].msgid, gid)

    assert lines(chat, limit=1) == [("b", 0, "2")]
    assert [type(each) for each in asked] == [inbox.SeqsAt, inbox.MessagesAt]
    asked.clear()
    say(chat, "3", gid="more", sender="bob")
    chat.ack("ann", "team", private=True)
    assert lines(chat, limit=1) == [("more", 1, "3")]
    assert asked == []


def test_a_page_goes_on_after_its_cursor_while_groups_move(chat: Chat) -> None:
    for gid in ("a", "b", "more"):
        say(chat, gid, gid=gid, sender="bob")
    first = chat.inbox("ann", limit=2)
    assert ([each.gid for each in first.entries], first.next is not None) == (["more", "b"], True)

    say(chat, "again", gid="a", sender="bob")
    chat.create_group("z", ["ann"])

    assert lines(chat, after=first.next) == [("team", 0, None), ("z", 0, None)]
    second = chat.inbox("ann", limit=1, after=first.next)
    assert lines(chat, after=second.next) == [("z", 0, None)]
    assert [gid for gid, *_ in lines(chat)] == ["a", "more", "b", "team", "z"]


def test_groups_of_one_msgid_come_by_gid(chat: Chat) -> None:
    chat.create_group("c", ["ann"])
    same = 8192 * (1_767_225_600_000 - msgids.EPOCH_MS)
    for gid in ("c", "b", "a"):
        k = chat.system.client.space.group(gid)
        fields = {"seq": 1, "uid": "bob", "span": 0, "cid": "", "sent": "", "caught_up": 0, "text": gid}
        chat.system.client.driver.xadd(k.stream, fields, id=msgids.unpack(same))
        chat.system.client.driver.hset(k.meta, mapping={"seq": 1, "last": same})

    assert [gid for gid, *_ in lines(chat)] == ["a", "b", "c", "more", "team"]
    first = chat.inbox("ann", limit=1)
    assert [gid for gid, *_ in lines(chat, limit=2, after=first.next)] == ["b", "c"]


def test_unread_only(chat: Chat) -> None:
    say(chat, "1", gid="a", sender="bob")
    say(chat, "2", gid="b", sender="ann")
    say(chat, "3", gid="more", sender="bob")

    assert lines(chat, unread_only=True) == [("more", 1, "3"), ("a", 1, "1")]
    page = chat.inbox("ann", limit=1, unread_only=True)
    assert (page.groups, page.unread_groups, page.unread) == (4, 2, 2)
    assert lines(chat, unread_only=True, after=page.next) == [("a", 1, "1")]


def test_a_group_that_was_left_meanwhile_is_left_out(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, space = chat.system.client.driver, chat.system.client.space
    driver.sadd(space.groups_of(space.partition_of("gone"), "ann"), "gone")  # its meta is gone
    driver.sadd(space.groups_of(space.partition_of("team"), "dan"), "team")  # they are no member

    assert [gid for gid, *_ in lines(chat)] == ["a", "b", "more", "team"]
    assert chat.inbox("ann").groups == 4
    assert lines(chat, "dan") == []


def test_long_texts_come_in_several_calls(chat: Chat) -> None:
    gids = [f"g{number:02}" for number in range(40)]
    for gid in gids:
        chat.create_group(gid, ["ann", "bob"])
        say(chat, gid * 20_000, gid=gid, sender="bob")

    contents = [content for _, _, content in lines(chat, limit=40)]
    assert contents == [gid * 20_000 for gid in reversed(gids)]


@pytest.mark.parametrize("how", [{"limit": 0}, {"limit": 1_000_000}, {"limit": 501}, {"limit": True}, {"limit": "1"}])
def test_a_limit_is_between_1_and_500(chat: Chat, how: Any) -> None:
    with pytest.raises(InvalidInput, match="a limit of"):
        chat.inbox("ann", **how)


@pytest.mark.parametrize("cursor", ["", "team", "1-1", "x:team", "0:team", "1767225600000-9999:team", "\ud800:x", 7])
def test_a_cursor_is_what_a_page_has_given(chat: Chat, cursor: Any) -> None:
    with pytest.raises(InvalidInput):
        chat.inbox("ann", after=cursor)


def test_a_server_without_workers_needs_no_sql(chat: Chat) -> None:
    say(chat, "1", sender="bob")
    assert lines(chat)[0] == ("team", 1, "1")
    store(chat)
    call = message_calls.trim(chat.system.client.space, "team", msgids.pack(chat.group("team").last_msgid or ""))
    chat.system.client.call(call)
    assert lines(chat)[0] == ("team", 1, "1")
