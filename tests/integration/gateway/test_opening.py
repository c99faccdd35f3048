"""A live session begins with all that was not acked, and misses nothing of that moment."""

from collections.abc import Sequence
from typing import Any

import pytest

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import (
    ImError,
    UnknownUser,
)
from imcore.operations import queries, sessions
from imcore.operations.effects import Effects
from imcore.streams.keys import Keyspace
from tests.helpers.gateways import Audience
from tests.helpers.talk import offset, push_receipts, say


def test_a_session_begins_with_unacked_messages_and_continues_live(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3", "4")
    chat.ack("bob", "team", sent[1].msgid)
    # When
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob")
        audience.until(lambda: audience.messages[bob] == sent[2:])
        sent += say(chat, "5")
        audience.until(lambda: audience.messages[bob] == sent[2:])
    # Then
    assert [each.unread for each in chat.unread("bob")] == [0]


def test_a_group_joined_in_the_moment_a_session_begins_is_not_missed(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a user who joins right after the session has asked for their groups, at its beginning and again
    chat.create_group("old", ["ann", "bob"])
    groups_or_errors = queries.groups_or_errors

    def then_joins(space: Keyspace, uids: Sequence[str]) -> Effects[dict[str, list[str] | ImError]]:
        groups = yield from groups_or_errors(space, uids)
        if joins:
            other.create_group(joins.pop(), ["bob", "ann"])
        return groups

    with chat.gateway() as gateway:
        audience = Audience(gateway)
        gateway.open("ann")
        audience.settled()
        joins = ["team", "news"]
        monkeypatch.setattr(queries, "groups_or_errors", then_joins)
        # When
        bob = gateway.open("bob")
        audience.until(lambda: not joins)
        for gid in ("team", "news"):
            say(other, "hi", gid=gid)
        # Then
        audience.until(lambda: audience.heard(bob) == ["hi"] and audience.heard(bob, "news") == ["hi"])


def test_a_digest_in_the_moment_a_session_begins_is_not_missed(
    chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a digest right after the session has asked what waits
    chat.create_group("team", ["ann", "bob"])
    [message] = say(chat, "hi")
    dirty_receipts = sessions.dirty_receipts
    is_pushed = False

    def then_pushes(*args: Any) -> Effects[Any]:
        nonlocal is_pushed
        dirty = yield from dirty_receipts(*args)
        if not is_pushed:
            is_pushed = True
            push_receipts(other, message)
        return dirty

    with chat.gateway() as gateway:
        audience = Audience(gateway)
        monkeypatch.setattr(sessions, "dirty_receipts", then_pushes)
        # When
        ann = gateway.open("ann")
        # Then
        audience.until(lambda: audience.receipts[ann])
    assert {each.msgid for each in audience.receipts[ann]} == {message.msgid}


def test_a_user_in_no_group_cannot_listen(chat: Chat) -> None:
    chat.create_group("team", ["ann"])
    with pytest.raises(UnknownUser, match="'eve' is in no group"):
        chat.listen("eve")
    assert chat.online(["eve"]) == set()


def test_unacked_messages_come_again_whatever_the_client_has(chat: Chat) -> None:
    # Given a client that was killed after it had kept three messages and acked one of them
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3")
    chat.ack("bob", "team", sent[0].msgid)
    # When
    with chat.gateway(ack_interval_s=0.05) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": sent[2].msgid, "left long ago": sent[1].msgid})
        # Then
        audience.until(lambda: audience.heard(bob) == ["2", "3"])
        audience.until(lambda: offset(chat, "bob") == sent[2].msgid)


def test_a_client_behind_another_devices_acks_gets_the_missing_messages(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3")
    chat.ack("bob", "team")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": sent[0].msgid})
        begun = gateway.open("bob", after={"team": "0-0"})
        audience.until(lambda: audience.heard(bob) == ["2", "3"] and audience.heard(begun) == ["1", "2", "3"])


def test_a_resume_point_beyond_all_messages_acks_nothing(chat: Chat) -> None:
    # Given a client whose resume point is of another server, or of one that has lost its last second since
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1")
    beyond = msgids.unpack(msgids.pack(sent[0].msgid) + (5000 << msgids.COUNTER_BITS))
    # When
    with chat.gateway(ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": beyond})
        # Then
        audience.until(lambda: audience.heard(bob) == ["1"])
        sent += say(chat, "2")
        audience.until(lambda: audience.heard(bob) == ["1", "2"])
        audience.until(lambda: offset(chat, "bob") == sent[1].msgid)


def test_a_device_that_had_a_database_begins_new_groups_where_the_user_joined(chat: Chat) -> None:
    # Given groups that another device has read to the end; this device has a resume point in one of them
    chat.create_group("team", ["ann", "bob"])
    chat.create_group("news", ["ann"])
    kept = say(chat, "1", "2")
    say(chat, "before", gid="news")
    chat.add_members("news", ["bob"])
    say(chat, "a", "b", gid="news")
    chat.ack("bob", "team")
    chat.ack("bob", "news")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        # When
        known = gateway.open("bob", after={"team": kept[0].msgid}, start="join")
        fresh = gateway.open("bob")
        # Then
        audience.until(lambda: audience.heard(known) == ["2"] and audience.heard(known, "news") == ["a", "b"])
        audience.settled()
        assert audience.messages[fresh] == []


def test_the_offset_counts_as_of_the_opening(chat: Chat, other: Chat) -> None:
    # Given a session that is opened, and another one of the same user that acks before it polls
    chat.create_group("team", ["ann", "bob"])
    with chat.gateway() as slow, other.gateway(ack_every=1) as quick:
        quick_audience = Audience(quick)
        bobs = quick.open("bob")
        quick_audience.settled()
        bob = slow.open("bob")
        # When
        say(other, "in between")
        quick_audience.until(lambda: quick_audience.heard(bobs) == ["in between"])
        quick_audience.until(lambda: [each.unread for each in other.unread("bob")] == [0])
        # Then
        slow_audience = Audience(slow)
        slow_audience.until(lambda: slow_audience.heard(bob) == ["in between"])
