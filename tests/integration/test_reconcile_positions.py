"""Positions beside the offset where Redis came back older than SQL, or changes while it is repaired."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from imcore.model.rows import BookmarkRow
from imcore.repair import window
from imcore.repair.apply import mend
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql import queries
from imcore.streams.calls import message_calls
from imcore.streams.calls.message_calls import AckTarget
from tests.helpers.snapshot import Snapshot
from tests.helpers.workers import persist

GID = "g"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=0, retry_ms=0, partitions=2)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    """A group of three; ann has said ten things, of which bob has acked two."""
    chat.system.database.upgrade()
    chat.create_group(GID, ["ann", "bob", "cyd"])
    for number in range(10):
        chat.send(GID, str(number), sender_uid="ann")
    chat.ack("bob", GID, nth(chat, 1))
    persist(chat)
    return chat


def nth(chat: Chat, number: int) -> str:
    return chat.status(GID, limit=0)[number].message.msgid


def unread(chat: Chat, uid: str = "bob") -> tuple[int, bool]:
    (answer,) = chat.unread(uid)
    return answer.unread, answer.marked


def pulled(chat: Chat, uid: str = "bob") -> list[str]:
    return [message.content for message in chat.pull(uid, GID)]


def stored(chat: Chat, uid: str = "bob") -> BookmarkRow | None:
    return {row.uid: row for row in queries.bookmarks(chat.system.database, [GID])}.get(uid)


def delivered(chat: Chat, number: int) -> int:
    return chat.tally(GID, nth(chat, number)).delivered


def assert_sound(chat: Chat) -> None:
    """Check that nothing differs, be all stored or not."""
    assert [difference for difference in check(chat.system) if difference.gid] == []
    persist(chat)
    assert list(check(chat.system)) == []


def lose(chat: Chat, step: Callable[[], object], since: Callable[[], object] = lambda: None) -> None:
    """Take a step that a worker stores and Redis loses, and then another one; a worker reconciles the two."""
    snapshot = Snapshot.of(chat.system.client.driver)
    step()
    persist(chat)
    snapshot.restore(chat.system.client.driver)
    since()
    persist(chat)


def send(chat: Chat, content: str) -> None:
    chat.send(GID, content, sender_uid="ann")


# A lost message.


def test_private_reading_goes_back_before_a_lost_message(chat: Chat) -> None:
    # Given bob, who reads all in private, but for a message that Redis has lost
    def since() -> None:
        send(chat, "since")
        chat.ack("bob", GID, private=True)

    # When
    lose(chat, lambda: send(chat, "lost"), since)
    # Then
    assert pulled(chat) == ["lost", "since"]
    assert unread(chat) == (2, False)
    assert_sound(chat)
    assert stored(chat) == (GID, "bob", 0, msgids.pack(nth(chat, 9)), 0, (stored(chat) or (0,) * 6)[5])


def test_private_reading_stays_if_sql_knows_that_it_passed_the_lost_message(chat: Chat) -> None:
    def step() -> None:
        send(chat, "lost")
        chat.ack("bob", GID, private=True)

    lose(chat, step, lambda: send(chat, "since"))
    assert pulled(chat) == ["since"]
    assert_sound(chat)


def test_nothing_that_was_lost_has_arrived(chat: Chat) -> None:
    # Given bob, at whom messages arrive; one of before is lost
    def since() -> None:
        send(chat, "since")
        for number in range(2, 11):
            chat.delivered("bob", GID, nth(chat, number))

    # When
    lose(chat, lambda: send(chat, "lost"), since)
    # Then
    assert [delivered(chat, number) for number in (9, 10, 11)] == [1, 0, 0]
    assert_sound(chat)
    assert [delivered(chat, number) for number in (9, 10, 11)] == [1, 0, 0]


def test_offset_goes_back_and_what_has_arrived_does_not_where_sql_knows_that(chat: Chat) -> None:
    def step() -> None:
        send(chat, "lost")
        for number in range(2, 11):
            chat.delivered("bob", GID, nth(chat, number))

    def since() -> None:
        send(chat, "since")
        chat.ack("bob", GID)

    lose(chat, step, since)
    assert pulled(chat) == ["lost", "since"]
    assert [delivered(chat, number) for number in (9, 10, 11)] == [1, 1, 1]
    assert_sound(chat)
    assert [delivered(chat, number) for number in (9, 10, 11)] == [1, 1, 1]


def test_mark_belongs_to_the_span_that_goes_on(chat: Chat) -> None:
    # Given dee, whose join Redis has lost; she joins again, reads in private, and marks something
    def join() -> None:
        chat.add_members(GID, ["dee"])
        send(chat, "lost")

    def since() -> None:
        send(chat, "since")
        chat.add_members(GID, ["dee"])
        send(chat, "first")
        send(chat, "second")
        chat.ack("dee", GID, private=True)
        chat.mark_unread("dee", GID, nth(chat, -1))

    # When
    lose(chat, join, since)
    # Then she gets all since she joined for the first time
    assert pulled(chat, "dee") == ["lost", "since", "first", "second"]
    assert unread(chat, "dee") == (1, True)
    assert_sound(chat)
    row = stored(chat, "dee")
    assert row is not None
    assert row[2:5] == (msgids.pack(nth(chat, 9)), 0, msgids.pack(nth(chat, -1)) - 1)


# Bookmarks that Redis has lost.


def test_later_bookmark_of_sql_comes_back(chat: Chat) -> None:
    chat.mark_unread("bob", GID, nth(chat, 7))
    persist(chat)
    lose(chat, lambda: chat.mark_unread("bob", GID, nth(chat, 4)))
    assert unread(chat) == (6, True)
    assert_sound(chat)


def test_removed_bookmark_stays_removed(chat: Chat) -> None:
    chat.mark_unread("bob", GID, nth(chat, 7))
    persist(chat)
    lose(chat, lambda: chat.unmark("bob", GID))
    assert unread(chat) == (8, False)
    assert_sound(chat)


def test_what_a_user_did_since_the_loss_counts(chat: Chat) -> None:
    chat.mark_unread("bob", GID, nth(chat, 7))
    persist(chat)
    lose(chat, lambda: chat.unmark("bob", GID), lambda: chat.mark_unread("bob", GID, nth(chat, 9)))
    assert unread(chat) == (1, True)
    assert_sound(chat)


def test_own_messages_behind_the_offset_are_counted_out_after_a_rebuild(chat: Chat) -> None:
    # Given ann, who has marked messages that are all her own, but for one
    chat.send(GID, "by bob", sender_uid="bob")
    chat.ack("ann", GID)
    chat.mark_unread("ann", GID, nth(chat, 3))
    persist(chat)
    # When Redis gets a few of them back
    chat.system.client.driver.flushall()
    chat.system.settings = replace(chat.system.settings, keep_messages=2)
    rebuild(chat.system)
    # Then
    assert unread(chat, "ann") == (1, True)
    assert_sound(chat)


def test_changes_after_a_rebuild_are_later_than_all_that_sql_has(chat: Chat) -> None:
    # Given a journal of a server whose clock was an hour ahead, and a database without watermarks
    journal = chat.system.client.space.group(GID).journal
    ahead = int(nth(chat, 9).partition("-")[0]) + 3_600_000
    chat.system.client.driver.execute_command("XSETID", journal, f"{ahead}-7")
    chat.mark_unread("bob", GID, nth(chat, 7))
    persist(chat)
    with chat.system.database.writing() as connection:
        connection.execute(text("DELETE FROM imcore_meta WHERE name LIKE 'stored:%'"))
    chat.system.client.driver.flushall()
    rebuild(chat.system)
    # When
    chat.unmark("bob", GID)
    # Then
    assert_sound(chat)
    assert (stored(chat) or (0,) * 5)[3:5] == (0, 0)


def test_last_of_two_private_acks_in_one_call_is_stored(chat: Chat) -> None:
    # Given two devices of bob behind one gateway, and cyd, who has read as far as one of them
    targets = [
        AckTarget(msgids.pack(nth(chat, number)), uids) for number, uids in ((7, ["cyd"]), (4, ["bob"]), (7, ["bob"]))
    ]
    chat.system.client.call(message_calls.ack(chat.system.client.space, GID, targets, private=True))
    # Then
    assert_sound(chat)
    assert (stored(chat) or (0,) * 6)[3] == msgids.pack(nth(chat, 7))


# Changes meanwhile.


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize("was_marked", [False, True])
@pytest.mark.parametrize("change", ["mark", "unmark", "private", "ack", "leave"])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("moment", [1, 2])
def test_repair_keeps_what_users_do_meanwhile(
    chat: Chat,
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
    change: str,
    was_marked: bool,
    is_older: bool,
    is_late: bool,
) -> None:
    # Given another bookmark on each side, and bob, who changes his just before or after it is read
    if was_marked:
        chat.mark_unread("bob", GID, nth(chat, 7))
        persist(chat)
    row = BookmarkRow(GID, "bob", 0, msgids.pack(nth(chat, 5)), 0, changed=5)
    with chat.system.database.writing() as connection:
        connection.execute(text("DELETE FROM bookmarks"))
        values = row._asdict()
        names = ", ".join(f":{name}" for name in values)
        connection.execute(text(f"INSERT INTO bookmarks VALUES ({names})"), values)
    read, steps = (
        window.bookmarks,
        {
            "mark": lambda: chat.mark_unread("bob", GID, nth(chat, 8)),
            "unmark": lambda: chat.unmark("bob", GID),
            "private": lambda: chat.ack("bob", GID, nth(chat, 9), private=True),
            "ack": lambda: chat.ack("bob", GID),
            "leave": lambda: chat.remove_members(GID, ["bob"]),
        },
    )
    waiting = [steps[change], *[lambda: None] * (moment - 1)]

    def meanwhile(*given: Any) -> dict[str, str]:
        found = read(*given)
        if waiting:
            waiting.pop()()
        return found if is_late else read(*given)

    monkeypatch.setattr(window, "bookmarks", meanwhile)
    # When
    mend(chat.system, GID, is_older=is_older)
    # Then
    assert_sound(chat)
    if change in {"mark", "private", "ack"}:
        expected = {"mark": (2, True), "private": (0, False), "ack": (0, False)}[change]
        assert unread(chat) == expected
