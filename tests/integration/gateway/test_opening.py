"""A live session begins with all that was not acked, and misses nothing of that moment."""

from collections.abc import Sequence
from typing import Any

import pytest

from imcore import SessionStart
from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.errors import (
    ImError,
    InvalidInput,
    UnknownUser,
)
from imcore.operations import queries, sessions
from imcore.operations.effects import Effects
from imcore.streams.keys import Keyspace
from tests.helpers.gateways import Audience, kill_connections
from tests.helpers.talk import leave_to_sql, offset, push_receipts, say


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


def test_a_client_goes_on_exactly_where_it_says(chat: Chat) -> None:
    # Given a client that has three messages and has acked one of them
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3", "4")
    chat.ack("bob", "team", sent[0].msgid)
    # When
    with chat.gateway(acks="client") as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": sent[2].msgid, "left long ago": sent[1].msgid})
        # Then
        first, third, last = (msgids.pack(sent[number].msgid) for number in (0, 2, 3))
        assert bob.starts == {"team": SessionStart(third, first, last, unread=3)}
        start = bob.starts["team"]
        assert [start.after, start.last_ack_msgid, start.last_msgid] == [sent[n].msgid for n in (2, 0, 3)]
        audience.until(lambda: audience.heard(bob) == ["4"])
        audience.settled()
        assert audience.heard(bob) == ["4"]
    assert offset(chat, "bob") == sent[0].msgid


def test_a_client_behind_another_devices_acks_gets_the_missing_messages(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1", "2", "3")
    chat.ack("bob", "team")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": sent[0].msgid})
        begun = gateway.open("bob", after={"team": "0-0"})
        audience.until(lambda: audience.heard(bob) == ["2", "3"] and audience.heard(begun) == ["1", "2", "3"])


def test_a_resume_point_beyond_all_messages_hides_none(chat: Chat) -> None:
    # Given a client that knows a message that the server does not know, or has lost
    chat.create_group("team", ["ann", "bob"])
    sent = say(chat, "1")
    beyond = msgids.unpack(msgids.pack(sent[0].msgid) + (5000 << msgids.COUNTER_BITS))
    with chat.gateway(ack_interval_s=0.02) as gateway:
        audience = Audience(gateway)
        # When
        bob = gateway.open("bob", after={"team": beyond})
        # Then it is told where it begins, and gets what comes
        assert bob.starts["team"].after == sent[0].msgid
        sent += say(chat, "2")
        audience.until(lambda: audience.heard(bob) == ["2"])
        kill_connections(chat.system.client.driver, "pubsub")
        sent += say(chat, "3")
        audience.until(lambda: audience.heard(bob) == ["2", "3"])
        audience.until(lambda: offset(chat, "bob") == sent[2].msgid)


def test_nobody_begins_before_their_join(chat: Chat) -> None:
    chat.create_group("team", ["ann"])
    chat.create_group("home", ["ann"])
    before = say(chat, "1", "2")
    say(chat, "1", gid="home")
    for gid in ("team", "home"):
        chat.add_members(gid, ["bob"])
    say(chat, "3", "4")
    say(chat, "2", gid="home")
    with chat.gateway() as gateway:
        audience = Audience(gateway)
        bob = gateway.open("bob", after={"team": before[0].msgid, "home": "0-0"}, tag="a browser")
        assert bob.starts["team"].after == before[1].msgid
        assert bob.tag == "a browser"
        audience.until(lambda: audience.heard(bob) == ["3", "4"] and audience.heard(bob, "home") == ["2"])


def test_a_live_session_begins_with_what_comes_and_knows_what_is_unread(chat: Chat) -> None:
    # Given groups with nothing, with unread and recalled messages, and one whose offset only SQL knows
    for gid in ("empty", "old", "team"):
        chat.create_group(gid, ["ann", "bob"])
    sent = say(chat, "1", "2", "3", "4")
    chat.recall("team", sent[2].msgid, by="ann")
    old = say(chat, "1", "2", gid="old")
    chat.ack("bob", "old", old[0].msgid)
    leave_to_sql(chat, old[1].msgid, gid="old")
    with chat.gateway(acks="off") as gateway:
        audience = Audience(gateway)
        # When
        bob = gateway.open("bob", start="live")
        # Then
        assert {gid: start.unread for gid, start in bob.starts.items()} == {"empty": 0, "old": None, "team": 3}
        assert bob.starts["empty"].after is None
        assert bob.starts["old"].last_ack_msgid == old[0].msgid
        audience.settled()
        assert audience.messages[bob] == []
        for gid in ("empty", "old", "team"):
            say(chat, "news", gid=gid)
            audience.until(lambda gid=gid: audience.heard(bob, gid) == ["news"])


@pytest.mark.parametrize("request_", [{"start": "now"}, {"start": None}, {"most": -1}, {"most": "5"}, {"most": True}])
def test_a_beginning_that_cannot_be_is_refused(chat: Chat, request_: dict[str, Any]) -> None:
    chat.create_group("team", ["bob"])
    with chat.gateway() as gateway, pytest.raises(InvalidInput):
        gateway.open("bob", **request_)
    assert chat.online(["bob"]) == set()


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
