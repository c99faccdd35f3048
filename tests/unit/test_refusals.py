"""Calls that must be refused in one line and without a change: each was found by tests/model/test_fuzz.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from imcore import Chat
from imcore.admin import retention
from imcore.cli.app import app
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, Outgoing
from imcore.errors import ImError, InvalidInput, LocalDatabaseError
from imcore.gateway.fanout import Session
from imcore.model.direct import gid_of, peer_of
from imcore.model.values import Draft, Message, Receipt
from imcore.streams import dead_letters
from imcore.streams.calls import group_calls

MSGID = "1767225600000-0"


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.create_group("team", ["ann", "bob"])
    return chat


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalDatabase]:
    with LocalDatabase(tmp_path / "ann.db", "ann") as local:
        yield local


WRONG: dict[str, Callable[[Any], object]] = {
    "a uid that is no text": lambda chat: chat.groups_of(None),
    "a gid that is no text": lambda chat: chat.group(7),
    "uids that are no list": lambda chat: chat.add_members("team", None),
    "uids that hold a list": lambda chat: chat.add_members("team", [["cleo"]]),
    "uids of whom to know whether they are online": lambda chat: chat.online(["\ud800"]),
    "a content that is no text": lambda chat: chat.send("team", b"hi", sender_uid="ann"),
    "a msgid that is no text": lambda chat: chat.ack("ann", "team", 7),
    "a time that is a text": lambda chat: chat.send("team", "hi", sender_uid="ann", sent_at="2004-12-25"),
    "a limit that is a text": lambda chat: chat.pull("ann", limit="1"),
    "a session that cannot be one": lambda chat: chat.heartbeat("ann", "\ud800"),
    "a session to end that cannot be one": lambda chat: chat.end_session("ann", None),
    "a receipt of no msgid": lambda chat: chat.confirm_receipts("ann", [Receipt("team", "x", 1, 0, 1, 1)]),
    "a receipt of a huge version": lambda chat: chat.confirm_receipts("ann", [Receipt("team", MSGID, 1, 0, 1, 2**70)]),
    "an id of a dead letter that is no text": lambda chat: dead_letters.show(chat.system.client, None),
    "a negative retention": lambda chat: retention.trim(chat.system, keep_messages=-1),
    "a time that is true": lambda chat: chat.send_many("team", [Draft("ann", "hi", "", True)]),
    "a limit that is true": lambda chat: chat.pull("ann", limit=True),
    "a receipt that true have read": lambda chat: chat.confirm_receipts(
        "ann", [Receipt("team", MSGID, True, 0, True, 1)]
    ),
    "a gateway that acks every true messages": lambda chat: chat.gateway(ack_every=True),
    "a gateway that acks after true seconds": lambda chat: chat.gateway(ack_interval_s=True),
    "a poll for true seconds": lambda chat: chat.gateway().poll(True),
    "a retention of true messages": lambda chat: retention.trim(chat.system, keep_messages=True),
    "a gateway that acks every 0 messages": lambda chat: chat.gateway(ack_every=0),
    "a gateway that acks after no time": lambda chat: chat.gateway(ack_interval_s=float("nan")),
    "a gateway that tells receipts otherwise": lambda chat: chat.gateway(receipts="sometimes"),
    "a session of nobody": lambda chat: chat.gateway().open(""),
    "a place beyond all messages": lambda chat: chat.gateway().open("ann", after={"team": f"{2**200}-0"}),
    "places that are no msgids by gid": lambda chat: chat.gateway().open("ann", after=["team"]),
    "acks that mean nothing": lambda chat: chat.gateway(acks=True),
    "a message that no client receives": lambda chat: chat.gateway().received(Session("ann"), "team", MSGID),
    "receipts that no client knows": lambda chat: chat.gateway().confirm_receipts(Session("ann"), []),
    "a received msgid that is none": lambda chat: chat.gateway(acks="client").received(Session("ann"), "team", "x"),
    "known receipts that are none": lambda chat: chat.gateway(acks="client").confirm_receipts(Session("ann"), [7]),
    "a poll that would never end": lambda chat: chat.gateway().poll(float("nan")),
    "more events given back than were returned": lambda chat: chat.gateway().requeue(1),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_refused(chat: Chat, call: Callable[[Chat], object]) -> None:
    with pytest.raises(InvalidInput):
        call(chat)


def test_a_direct_send_with_a_wrong_client_msgid_makes_no_chat(chat: Chat) -> None:
    with pytest.raises(InvalidInput, match="client_msgid"):
        chat.send_direct("bob", "hi", sender_uid="ann", client_msgid="")

    assert [group.gid for group in chat.groups()] == ["team"]


def test_a_limit_may_be_larger_than_any_count(chat: Chat) -> None:
    assert chat.receipts("ann", limit=2**70) == []


def test_a_gateway_without_sessions_can_be_polled(chat: Chat) -> None:
    with chat.gateway() as gateway:
        assert gateway.poll(0) == []


def test_a_session_can_be_ended_twice(chat: Chat) -> None:
    with chat.gateway() as gateway:
        session = gateway.open("ann")
        gateway.end(session)
        gateway.end(session)

    assert chat.online(["ann"]) == set()


def test_no_gid_without_uids() -> None:
    with pytest.raises(InvalidInput):
        gid_of("ann", "\ud800")
    assert peer_of("dm:\ud800", "ann", ["\ud800"]) is None
    assert peer_of(f"dm:{'9' * 5000}:ann:bob", "ann") is None


@pytest.mark.parametrize(
    "keep",
    [
        lambda local: local.queue("team", "\ud800"),
        lambda local: local.begin(["team"]),
        lambda local: local.keep([Message("team", MSGID, 1, "ann", "hi")], ["team"]),
        lambda local: list(local.log(gid="\ud800")),
    ],
)
def test_data_that_a_local_database_cannot_keep_does_not_damage_it(
    local: LocalDatabase, keep: Callable[[LocalDatabase], object]
) -> None:
    with pytest.raises(ImError) as caught:
        keep(local)

    assert not isinstance(caught.value, LocalDatabaseError)
    assert (list(local.log()), local.resume_points(), local.waiting(), local.begun) == ([], {}, [], False)


def test_a_message_that_was_never_queued_here_does_not_wait(chat: Chat, local: LocalDatabase) -> None:
    with pytest.raises(InvalidInput, match="not in this local database"):
        Device(chat, "ann", local).unsent_line(Outgoing(1, "team", None, "hi", "unknown"))


@pytest.mark.parametrize("words", [["trim", "--keep-days", "nan"], ["listen", "ann", "--ack-interval", "nan"]])
def test_nan_is_wrong_usage(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)

    assert result.exit_code == 2
    assert "'nan' is not a number" in result.stderr


def test_a_group_that_a_scan_brings_twice_is_listed_once(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    page = group_calls._page_of_names
    monkeypatch.setattr(group_calls, "_page_of_names", lambda answer: (page(answer)[0], page(answer)[1] * 2))
    assert [group.gid for group in chat.groups()] == ["team"]
