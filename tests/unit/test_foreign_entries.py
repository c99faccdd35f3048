"""Entries that somebody has added to Redis by hand, or with another program, stop nobody."""

from pathlib import Path
from typing import Any

import pytest

from imcore import Chat, Gateway, Message, NewMessage, Receipt
from imcore import msgid as msgids
from imcore.admin.stats import online_uids
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase
from imcore.errors import UnknownMessage
from imcore.model.records import iso
from imcore.model.values import Draft
from imcore.operations.messages import message as message_of
from imcore.sql.database import Database
from imcore.streams.calls import creation_calls, group_calls, message_calls
from tests.helpers.deadline import wait_until
from tests.helpers.persist_runs import new_persist
from tests.helpers.workers import deliver_receipts, run_workers


@pytest.fixture
def partitions() -> int:
    return 1


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("g", ["ann", "bob"])
    return chat


def add_garbage(chat: Chat) -> str:
    entry_id: bytes = chat.system.client.driver.xadd(chat.system.client.space.group("g").stream, {"nonsense": "1"})
    return entry_id.decode()


def test_readers_skip_foreign_entries(chat: Chat) -> None:
    # Given
    sent = []
    for number in range(4):
        add_garbage(chat)
        sent.append(chat.send("g", f"message {number}", sender_uid="ann").msgid)
        add_garbage(chat)
    # When, then
    assert [message.msgid for message in chat.pull("bob", "g")] == sent
    assert [message.msgid for message in chat.pull("bob", "g", limit=2)] == sent[:2]
    assert [tally.message.msgid for tally in chat.status("g", limit=3)] == sent[1:]
    assert chat.unread("bob")[0].unread == 4
    assert chat.ack("bob", "g", sent[1]).advanced
    assert chat.unread("bob")[0].unread == 2
    assert chat.tally("g", sent[1]).read == 1


def test_a_foreign_entry_is_an_unknown_message(chat: Chat) -> None:
    # Given
    chat.send("g", "hi", sender_uid="ann")
    garbage = add_garbage(chat)
    chat.send("g", "there", sender_uid="ann")
    # When, then
    for ask in (lambda: chat.tally("g", garbage), lambda: chat.ack("bob", "g", garbage)):
        with pytest.raises(UnknownMessage):
            ask()
    with pytest.raises(UnknownMessage):
        chat.message_status("g", garbage)
    with pytest.raises(UnknownMessage):
        chat.recall("g", garbage, by="ann")


def test_senders_get_receipts_of_the_messages_around_it(chat: Chat) -> None:
    # Given
    first = chat.send("g", "hi", sender_uid="ann")
    add_garbage(chat)
    second = chat.send("g", "there", sender_uid="ann")
    chat.ack("bob", "g")
    # When
    deliver_receipts(chat)
    # Then
    assert [(receipt.msgid, receipt.read) for receipt in chat.receipts("ann")] == [(first.msgid, 1), (second.msgid, 1)]


SOUND = {"seq": 2, "uid": "ann", "span": 0, "cid": "", "sent": "", "caught_up": 0, "text": "odd"}
ODD: dict[str, dict[str, Any]] = {
    "a time after the year 9999": {"sent": msgids.LATEST_MS + 1},
    "a time before the year 1": {"sent": msgids.EARLIEST_MS - 1},
    "a time of thousands of digits": {"sent": "9" * 5000},
    "a time that is no number": {"sent": "yesterday"},
    "a seq that is no number": {"seq": "two"},
    "a seq beyond all numbers": {"seq": 10**30},
    "a negative seq": {"seq": -2},
    "a sender that is not UTF-8": {"uid": b"jos\xe9"},
    "a sender with a long name": {"uid": "u" * 1000},
    "a sender without a name": {"uid": ""},
    "a client_msgid that is not UTF-8": {"cid": b"\xff"},
    "a text that is not UTF-8": {"text": b"caf\xe9"},
    "a text with a NUL": {"text": "a\0b"},
    "no text": {"text": ""},
    "a text beyond the limit": {"text": "x" * 100_000},
    "the recall of what is no msgid": {"text": "", "recalls": "abc"},
    "the recall of the place before the first": {"text": "", "recalls": 0},
    "the recall of a msgid beyond the last": {"text": "", "recalls": 10**20},
    "another field": {"more": "1"},
}
"""Messages that somebody has added by hand or by a program of their own, or that an older imcore has let through."""


@pytest.fixture(params=ODD.values(), ids=ODD.keys())
def around(request: pytest.FixtureRequest, chat: Chat) -> tuple[str, str]:
    """The msgids of two sound messages; between them is an odd one."""
    before = chat.send("g", "before", sender_uid="ann").msgid
    chat.system.client.driver.xadd(chat.system.client.space.group("g").stream, SOUND | request.param)
    return before, chat.send("g", "after", sender_uid="ann").msgid


def test_an_odd_message_hides_no_other_from_readers(chat: Chat, around: tuple[str, str]) -> None:
    for listed in (
        [message.msgid for message in chat.pull("bob")],
        [message.msgid for message in chat.pull("bob", "g", limit=3)],
        [tally.message.msgid for tally in chat.status("g")],
    ):
        assert [listed[0], listed[2]] == list(around)
    assert [chat.performer.perform(message_of("g", msgids.pack(msgid))).content for msgid in around] == [
        "before",
        "after",
    ]
    odd = chat.pull("bob", "g")[1]
    assert odd.time.year >= 2026
    assert chat.message_status("g", odd.msgid).unread_by == ("bob",)


def test_an_odd_message_ends_no_live_session(chat: Chat, around: tuple[str, str]) -> None:
    with chat.gateway() as gateway:
        gateway.open("bob")
        heard: list[str] = []
        wait_until(lambda: heard.extend(_messages(gateway)) or len(heard) >= 3)
        assert [heard[0], heard[2]] == list(around)
        later = chat.send("g", "later", sender_uid="ann").msgid
        wait_until(lambda: later in _messages(gateway))


def test_an_odd_message_stops_no_local_database(chat: Chat, around: tuple[str, str], tmp_path: Path) -> None:
    with LocalDatabase(tmp_path / "bob.db", "bob") as local:
        Device(chat, "bob", local).sync()
        assert {"before", "after"} <= {line.content for line in local.log()}
        assert local.resume_points() == {"g": around[1]}


def test_an_odd_message_stops_no_worker(chat: Chat, database: Database, around: tuple[str, str]) -> None:
    # Given
    chat.ack("bob", "g")
    # When
    run_workers(chat)
    # Then
    assert set(around) <= {msgids.unpack(row.msgid) for row in database.messages_after("g", 0, limit=10)}
    assert set(around) <= {receipt.msgid for receipt in chat.receipts("ann")}


@pytest.mark.parametrize("sent", ["yesterday", msgids.LATEST_MS + 1, "9" * 5000])
def test_an_impossible_time_is_left_out_for_members_and_in_sql_alike(chat: Chat, database: Database, sent: Any) -> None:
    # Given
    odd = chat.system.client.driver.xadd(
        chat.system.client.space.group("g").stream, SOUND | {"seq": 1, "sent": sent}
    ).decode()
    journal = chat.system.client.space.group("g").journal
    chat.system.client.driver.xadd(journal, {"kind": "msg", "gid": "g", "first": odd})
    # When
    run_workers(chat, [new_persist])
    # Then
    assert [message.sent_at for message in chat.pull("bob")] == [None]
    assert [(row.content, row.sent_at_ms) for row in database.messages_after("g", 0, limit=10)] == [("odd", None)]


@pytest.mark.parametrize("entry_id", ["5-1", "18446744073709551615-1", "99999999999999-9999"])
def test_an_entry_with_an_id_that_is_no_msgid_hides_no_message(chat: Chat, tmp_path: Path, entry_id: str) -> None:
    # Given, as the first or as the last of the stream
    stream = chat.system.client.space.group("g").stream
    if entry_id == "5-1":
        chat.system.client.driver.xadd(stream, SOUND, id=entry_id)
    sent = chat.send("g", "hi", sender_uid="ann").msgid
    if entry_id != "5-1":
        chat.system.client.driver.xadd(stream, SOUND, id=entry_id)
    # When, then
    assert {sent, entry_id} == {message.msgid for message in chat.pull("bob")}
    assert {sent, entry_id} == {tally.message.msgid for tally in chat.status("g", limit=0)}
    assert [iso(message.time)[-1] for message in chat.pull("bob")] == ["Z", "Z"]
    with LocalDatabase(tmp_path / "bob.db", "bob") as local:
        Device(chat, "bob", local).sync()
        assert [line.msgid for line in local.log()] == [sent]
    with chat.gateway() as gateway:
        gateway.open("bob")
        wait_until(lambda: sent in _messages(gateway))


def test_a_push_of_another_program_is_passed_over(chat: Chat) -> None:
    with chat.gateway() as gateway:
        # Given
        session = gateway.open("bob")
        wait_until(lambda: not _messages(gateway) and session.is_synced)
        space = chat.system.client.space
        room, inbox = space.group("g").channel, space.inboxes("bob")[0]
        # When
        for channel in (room, inbox):
            for push in (
                b"",
                b"m",
                b"m\x1fg",
                b"m\x1fg\x1fx\x1fy\x1fz\x1f\x1f\x1f",
                b"r\x1fg\x1f1-1\x1f2\x1fann\x1fabc",
                b"b\x1fg",
                b"b\x1fg\x1fp\x1fx\x1fhi",
                b"b\x1fg\x1fp\x1f2\x1f5-0\x1f1\x1fann\x1f\x1f\x1f0\x1f2\x1fhi",
                b"b\x1fg\x1fp\x1f1\x1f5-0\x1f1\x1fann\x1f\x1f\x1f0\x1f9\x1fhi",
            ):
                chat.system.client.driver.spublish(channel, push)
        for push in (b"d", b"d\x1fg\x1fone", b"d\x1fg\x1f1\x1fx y z", b"d\x1f\xff\x1f1", b"j\x1f\xff", b"l\x1f\xff"):
            chat.system.client.driver.spublish(inbox, push)
        # Then
        sent = chat.send("g", "hi", sender_uid="ann").msgid
        wait_until(lambda: sent in _messages(gateway))


def test_a_mark_that_somebody_has_added_hides_no_receipt(chat: Chat, tmp_path: Path) -> None:
    # Given
    sent = chat.send("g", "hi", sender_uid="ann").msgid
    chat.ack("bob", "g")
    deliver_receipts(chat)
    marks = chat.system.client.space.group("g").dirty("ann")
    chat.system.client.driver.zadd(
        marks, {b"\xff": 0.5, "g": 1.5, "g\x1fabc": 1e17, f"g\x1f{10**30}": 2, "\x1f5": float("inf")}
    )
    # When, then
    assert [receipt.msgid for receipt in chat.receipts("ann")] == [sent]
    with chat.listen("ann") as listener:
        wait_until(lambda: sent in [receipt.msgid for receipt in listener.poll(0.01) if isinstance(receipt, Receipt)])


@pytest.mark.parametrize("gid", ["g" * 1000, "a\nb", "\u202e", "dm#" + "0" * 500])
def test_a_group_with_a_name_that_no_command_takes_is_served_like_others(
    chat: Chat, tmp_path: Path, gid: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a group that another program has made
    redis_client = chat.system.client
    redis_client.call(creation_calls.create(redis_client.space, gid, ["ann", "bob"]))
    for each in (gid, "g"):
        redis_client.call(message_calls.send(redis_client.space, each, [Draft("ann", "hi")], 1000))
    pulled = {message.gid: message.msgid for message in chat.pull("bob")}
    assert set(pulled) == {gid, "g"}
    # When
    for uid in ("ann", "bob"):
        with LocalDatabase(tmp_path / f"{uid}.db", uid) as local:
            client = Device(chat, uid, local)
            client.sync()
            heard = list(client.live(iter([False] * 8 + [True] * 8).__next__))
            # Then
            assert local.resume_points() == pulled
    assert {event.gid for event in heard if isinstance(event, Message)} == set(pulled)
    assert [position.unread for position in chat.unread("bob")] == [0, 0]
    assert not any(chat.ack("bob", each, msgid).advanced for each, msgid in pulled.items())
    assert [(receipt.gid, receipt.read) for receipt in chat.receipts("ann")] == []
    assert caplog.messages == []


@pytest.mark.parametrize("uid", ["u" * 1000, "a\nb", " ", ""])
def test_a_member_with_a_name_that_no_command_takes_hides_no_other(chat: Chat, uid: str) -> None:
    # Given a member whom another program has added, and what they say
    redis_client = chat.system.client
    redis_client.call(group_calls.add_members(redis_client.space, "g", [uid]))
    sent = chat.send("g", "hi", sender_uid="ann")
    redis_client.call(message_calls.send(redis_client.space, "g", [Draft(uid, "hello")], 1000))
    # When, then
    assert {member.uid for member in chat.members("g")} == {"ann", "bob", uid}
    assert set(chat.message_status("g", sent.msgid).unread_by) == {"bob", uid}
    assert [message.sender_uid for message in chat.pull("bob")] == ["ann", uid]
    assert chat.ack("bob", "g").advanced
    deliver_receipts(chat)
    assert [receipt.read for receipt in chat.receipts("ann")] == [1]


def test_names_that_are_not_utf8_hide_no_other(chat: Chat) -> None:
    # Given
    space, client = chat.system.client.space, chat.system.client.driver
    sent = chat.send("g", "hi", sender_uid="ann")
    client.sadd(space.groups(0), b"\xff", "gone")
    client.sadd(space.groups_of(0, "bob"), b"\xff", "gone")
    for key in (space.group("g").acked, space.group("g").joined):
        client.zadd(key, {b"jos\xe9": 0})
    chat.begin_session("bob")
    client.zadd(space.online(0), {b"jos\xe9": 10**15})
    # When, then
    assert [group.gid for group in chat.groups()] == ["g"]
    assert [message.msgid for message in chat.pull("bob")] == [sent.msgid]
    assert [unread.unread for unread in chat.unread("bob")] == [1]
    assert {"ann", "bob"} <= {member.uid for member in chat.members("g")}
    assert "bob" in chat.message_status("g", sent.msgid).unread_by
    assert "bob" in online_uids(chat.system)
    with chat.gateway() as gateway:
        gateway.open("bob")
        wait_until(lambda: sent.msgid in _messages(gateway))


def _messages(gateway: Gateway) -> list[str]:
    return [event.message.msgid for event in gateway.poll(0.01) if isinstance(event, NewMessage)]
