"""What can come between the steps of an erasure, and names that look like something else."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat, Ended
from imcore.admin import erasure
from imcore.errors import ImError, TryAgain, UserErasing
from imcore.repair import apply
from imcore.repair.apply import mend
from imcore.repair.check import check
from imcore.repair.erasure import Erasure
from imcore.repair.locks import give_back, take
from imcore.settings import Settings
from imcore.streams.calls import erasure_calls
from imcore.streams.dead_letters import drop, list_dead, requeue
from tests.helpers.erased_user import ANN, DM, GONE, TEXT, assert_clean, bring_ann
from tests.helpers.gateways import Audience
from tests.helpers.leaks import leaks
from tests.helpers.talk import say
from tests.helpers.workers import run_workers


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=5, retry_ms=0, receipt_window_ms=0, max_deliveries=1)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    bring_ann(chat)
    return chat


def before_the_first(patch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object]) -> None:
    """Let something happen before the first call of a function."""
    original, calls = getattr(owner, name), 0

    def first(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            act()
        return original(*args, **options)

    patch.setattr(owner, name, first)


@pytest.mark.parametrize("uid", ["msg", "ack", "leave", "0", "5", "1", "uid", "team", "on"])
def test_a_name_may_be_a_word_of_the_journal(chat: Chat, uid: str) -> None:
    """Nothing of others changes: their messages, places and offsets are stored as if nobody had been erased."""
    # Given such a user, and what others did that no worker has stored
    chat.add_members("team", [uid])
    chat.set_group("team", receipts="counts")
    chat.ack("bob", "team")
    sent = say(chat, "one", "two", sender="bob")
    chat.ack("cy", "team", sent[0].msgid)
    chat.remove_members("team", ["cy"])
    status = chat.message_status("team", sent[0].msgid)
    chat.send("team", "mine", sender_uid=uid)

    chat.erase_user(uid)

    run_workers(chat)
    assert list(list_dead(chat.system.client)) == []
    assert list(check(chat.system)) == []
    assert chat.group_policy("team").receipts == "counts"
    now = chat.message_status("team", sent[0].msgid)
    assert (now.read, now.unread) == (status.read, status.unread)
    assert [reader.uid for reader in now.read_by] == [reader.uid for reader in status.read_by] == ["cy"]
    assert [each.content for each in chat.system.database.messages_after("team", 0)][-1] == ""


@pytest.mark.parametrize("step", ["_empty_sql", "_free_streams", "_clean_rest"])
def test_a_server_that_lost_some_of_it_meanwhile_does_it_all_again(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run_workers(chat)
    client = chat.system.client.driver
    copies = {key: client.dump(key) for key in client.scan_iter()}
    processes = iter(["before", "after", "after", "after"])
    monkeypatch.setattr(erasure, "_processes", lambda _: next(processes))

    def lose() -> None:
        client.flushdb()
        for key, value in copies.items():
            client.restore(key, 0, value)

    before_the_first(monkeypatch, erasure, step, lose)
    for _ in range(3):
        try:
            chat.erase_user(ANN)
            break
        except TryAgain:  # a lock was lost, too
            processes = iter(["after"] * 4)
    assert_clean(chat)


def test_a_repair_that_stalled_stores_nothing_of_the_user(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a repair that has read what there is, and whose locks have ended
    client, space = chat.system.client.driver, chat.system.client.space
    chat.system.client.driver.zrem(space.group("team").acked, "bob")

    def stall() -> None:
        for partition in range(space.partitions):
            client.delete(space.group_locks(partition))
            client.hdel(space.watermarks(partition), "repair")
        chat.erase_user(ANN)

    before_the_first(monkeypatch, apply._Attempt, "_write_spans", stall)
    monkeypatch.setattr("imcore.repair.locks.PartitionLock._extend", lambda *_: True)

    # When it goes on
    with suppress(TryAgain):
        mend(chat.system, "team")

    # Then it has brought nothing back
    monkeypatch.undo()
    list(check(chat.system, repair=True))
    assert_clean(chat)


def test_a_message_that_nothing_else_knows_goes_too(chat: Chat) -> None:
    # Given a message that is not in SQL, nor in a journal
    chat.create_group("lonely", [ANN, "cy"])
    run_workers(chat)
    chat.send("lonely", TEXT, sender_uid=ANN)
    client, space = chat.system.client.driver, chat.system.client.space
    for partition in range(space.partitions):
        client.xtrim(space.journal(partition), maxlen=0, approximate=False)
    # And one whose entry is a dead letter
    letter = {"dead_worker": "persist", "dead_reason": "odd", "dead_entry": "1-0", "dead_deliveries": "1"}
    sent = chat.send("empty", TEXT, sender_uid=ANN)
    for partition in range(space.partitions):
        client.xtrim(space.journal(partition), maxlen=0, approximate=False)
    fields = {**letter, "kind": "msg", "gid": "empty", "first": sent.msgid}
    client.xadd(space.dead_letters(space.partition_of("empty")), fields)

    chat.erase_user(ANN)

    assert [where for where in leaks(chat, GONE) if "empty" in where or "lonely" in where] == []
    assert chat.history("cy", "lonely").messages[-1].content == ""


def test_a_live_session_of_the_user_ends(chat: Chat, settings: Settings) -> None:
    quick = replace(settings, online_ms=2000, heartbeat_ms=100)
    with Chat.connect(settings=quick) as live, live.gateway() as gateway:
        audience = Audience(gateway)
        ann, bob = gateway.open(ANN), gateway.open("bob")
        audience.settled()

        chat.erase_user(ANN)

        ended = time.monotonic() + 10
        events: list[Any] = []
        while not events and time.monotonic() < ended:
            events = [event for event in gateway.poll(0.05) if isinstance(event, Ended)]
        assert [event.sessions for event in events] == [(ann,)]
        say(chat, "after", sender="cy")
        audience.until(lambda: audience.heard(bob)[-1:] == ["after"])
        assert_clean(chat)
        # And a new user of that name can begin one
        gateway.open(ANN)


def test_a_session_cannot_begin_meanwhile(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[type[ImError]] = []

    def begin() -> None:
        for call in (lambda: chat.begin_session(ANN), lambda: chat.set_user(ANN, receipts="off")):
            try:
                call()
            except ImError as error:
                refused.append(type(error))

    before_the_first(monkeypatch, erasure, "_clean_rest", begin)
    chat.erase_user(ANN)
    assert refused == [UserErasing, UserErasing]
    assert_clean(chat)


@pytest.mark.parametrize("step", ["_hide_all", "_empty_sql", "_free_streams", "_clean_rest"])
def test_another_erasure_that_was_quicker_leaves_the_new_user_alone(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run_workers(chat)

    def come_again() -> None:
        """Let another process erase Ann, and a new user of that name come."""
        with monkeypatch.context() as patch:
            patch.setattr(erasure, "PartitionLock", Unlocked)
            erasure.erase_user(chat.system, ANN)
        chat.add_members("team", [ANN])
        chat.send("team", "I am new", sender_uid=ANN, client_msgid="new")
        chat.send_direct("bob", "I am new", sender_uid=ANN)

    before_the_first(monkeypatch, erasure, step, come_again)
    with suppress(TryAgain):
        chat.erase_user(ANN)
    run_workers(chat)
    assert chat.history(ANN, "team").messages[-1].content == "I am new"
    assert chat.system.database.messages_after("team", 0)[-1].content == "I am new"
    assert chat.history("bob", DM).messages[-1].content == "I am new"
    assert list(check(chat.system)) == []


class Unlocked:
    """A lock that another process has lost."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take nothing."""

    def __enter__(self) -> "Unlocked":
        return self

    def __exit__(self, *_: object) -> None:
        """Release nothing."""

    def renew(self) -> None:
        """Nothing ends."""


def test_a_chat_of_two_over_whose_repair_somebody_has_died(chat: Chat) -> None:
    run_workers(chat)
    give_back(chat.system, take(chat.system, [DM]), done=False)
    chat.erase_user(ANN)
    list(check(chat.system, repair=True))
    assert_clean(chat)


def test_many_dead_letters_are_cleaned_in_pages(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given some pages of letters, some of Ann
    run_workers(chat)
    client, space = chat.system.client.driver, chat.system.client.space
    letter = {"dead_worker": "persist", "dead_reason": "odd", "dead_entry": "1-0", "dead_deliveries": "1"}
    uids = ["bob", "cy", ANN]
    for number in range(50):
        of = {"kind": "leave", "gid": "nowhere", "uid": uids[number % 3], "joined": "x", "left": str(number)}
        client.xadd(space.dead_letters(0), {**letter, **of})
    ids = [each.id for each in list_dead(chat.system.client)]
    monkeypatch.setattr(erasure_calls, "PAGE", 7)

    # When somebody drops one that was copied already, and another one comes
    pages = erasure_calls.clean_dead_letters
    calls = []

    def dropping(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            drop(chat.system.client, ids[3])
            client.xadd(space.dead_letters(0), {**letter, "kind": "leave", "uid": ANN, "left": "50"})
        return pages(*args)

    monkeypatch.setattr(erasure_calls, "clean_dead_letters", dropping)
    chat.erase_user(ANN)

    # Then the others have their ids and what they said
    letters = list(list_dead(chat.system.client))
    assert [each.id for each in letters][:-1] == [each for each in ids if each != ids[3]]
    assert [each.fields["left"] for each in letters] == [str(each) for each in range(51) if each != 3]
    assert {each.fields["uid"] for each in letters} == {"bob", "cy", letters[-1].fields["uid"]}
    assert leaks(chat, GONE) == []


def test_a_dead_letter_that_returns_meanwhile_has_no_name(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    run_workers(chat)
    client, space = chat.system.client.driver, chat.system.client.space
    letter = {"dead_worker": "persist", "dead_reason": "odd", "dead_entry": "1-0", "dead_deliveries": "1"}
    fields = {"kind": "leave", "gid": "team", "uid": ANN, "joined": "0", "left": "5"}
    client.xadd(space.dead_letters(space.partition_of("team")), {**letter, **fields})

    original = Erasure.clean_journal

    def late(self: Erasure, *args: Any) -> None:
        original(self, *args)
        for each in list_dead(chat.system.client):
            requeue(chat.system.client, each.id)

    monkeypatch.setattr(Erasure, "clean_journal", late)
    chat.erase_user(ANN)
    run_workers(chat)
    assert leaks(chat, GONE) == []


def test_a_leave_just_before_the_groups_are_hidden(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was stored of the group: its first members' spans begin at 0, which only the creation says."""
    chat.create_group("new", [ANN, "bob", "cy"])
    before_the_first(monkeypatch, erasure, "_hide", lambda: chat.remove_members("new", [ANN]))
    sent = chat.send("new", "hi", sender_uid="bob")
    chat.ack("cy", "new")
    before = chat.tally("new", sent.msgid)

    chat.erase_user(ANN)

    assert chat.tally("new", sent.msgid) == before
    assert_clean(chat)
    assert chat.tally("new", sent.msgid) == before
