"""A user is erased: nothing has the name or the texts any more, and every count is as before."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from imcore import AsyncChat, Chat, Draft
from imcore.admin import append_only, erasure, retention
from imcore.admin.erasure import erase_user
from imcore.errors import ImError, NotMember, TryAgain, UnknownGroup, UserErasing
from imcore.model.direct import gid_of, says_names
from imcore.model.erased import is_alias
from imcore.model.rows import Batch, SpanRow
from imcore.repair.check import check
from imcore.settings import Settings
from imcore.sql import erasures as sql_erasures
from imcore.sql.database import Database
from imcore.streams.calls import deletion_calls
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.client import RedisClient
from imcore.streams.dead_letters import list_dead, requeue
from tests.helpers.deadline import wait_until
from tests.helpers.dying import bury_the_dead
from tests.helpers.erased_user import ANN, CID, DM, GONE, TEXT, assert_clean, bring_ann
from tests.helpers.gateways import Audience
from tests.helpers.leaks import files_with, leaks
from tests.helpers.persist_runs import new_persist
from tests.helpers.servers import start_valkey
from tests.helpers.talk import say
from tests.helpers.workers import drain, run_workers


class KilledError(Exception):
    """What SIGKILL is here."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=5, retry_ms=0, receipt_window_ms=0, max_deliveries=1)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    bring_ann(chat)
    return chat


def tallies(chat: Chat, gid: str = "team") -> list[tuple[str, int, int, int]]:
    return [(each.message.msgid, each.read, each.unread, each.delivered) for each in chat.status(gid, limit=0)]


def renamed_dm(chat: Chat) -> str:
    [gid] = [gid for gid in chat.groups_of("bob") if gid.startswith("dm")]
    return gid


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_nothing_has_name_or_texts(chat: Chat, database_url: str, settings: Settings, stored: bool) -> None:
    with Chat.connect(settings=replace(settings, database_url=database_url)) as system:
        # Given what workers have stored, or have not; and receipts that wait
        system.system.database.upgrade()
        if stored:
            run_workers(system)
        before, status = tallies(system), system.message_status("team", tallies(system)[1][0])
        unread = {uid: system.member("team", uid).unread for uid in ("bob", "cy")}
        assert leaks(system, GONE) != []

        # When
        erased = system.erase_user(ANN)

        # Then
        assert (erased.uid, erased.messages) == (ANN, 8)
        assert tallies(system) == before
        assert {uid: system.member("team", uid).unread for uid in ("bob", "cy")} == unread
        after = system.message_status("team", status.message.msgid)
        names = {reader.uid for reader in after.read_by} | set(after.unread_by)
        assert names - {name for name in names if is_alias(name)} == {"cy"}
        assert (len(after.read_by), len(after.unread_by)) == (len(status.read_by), len(status.unread_by))
        assert_clean(system)


def test_places_names_and_history_are_of_another_who_has_left(chat: Chat) -> None:
    chat.erase_user(ANN)
    [alias] = {each.message.sender_uid for each in chat.status("team", limit=0)} - {"bob", "cy"}
    assert is_alias(alias)
    page = chat.history("cy", "team", limit=100)
    assert [each.content for each in page.messages if each.sender_uid == alias] == [""] * 7
    assert {each.client_msgid for each in page.messages if each.sender_uid == alias} == {None}
    assert [each.uid for each in chat.members("team")] == ["bob", "cy"]
    assert chat.groups_of(ANN) == []
    assert chat.groups_of(alias) == []
    [tombstone] = [each.message for each in chat.status("other", limit=0) if each.message.recalls]
    assert tombstone.sender_uid == alias
    assert [each.recalled for each in page.messages if each.recalled] == [True]


def test_each_chat_of_two_has_another_gid(chat: Chat) -> None:
    unread = {each.gid: each.unread for each in chat.unread("bob")}
    chat.erase_user(ANN)
    gid = renamed_dm(chat)
    assert not says_names(gid)
    assert [each.message.content for each in chat.status(gid)] == ["hi there", ""]
    assert {each.gid: each.unread for each in chat.unread("bob")} == {"other": 0, "team": unread["team"], gid: 1}
    with pytest.raises(UnknownGroup):
        chat.group(DM)
    chat.send(gid, "to nobody", sender_uid="bob")
    assert_clean(chat)


def test_receipts_of_others_stay(chat: Chat) -> None:
    # Given receipts of bob, in the chat with ann, too
    chat.ack(ANN, DM)
    chat.ack(ANN, "team")
    run_workers(chat)
    before = {each.msgid: (each.read, each.unread, each.version) for each in chat.receipts("bob")}
    assert len(before) > 1

    chat.erase_user(ANN)

    receipts = chat.receipts("bob")
    assert {each.msgid: (each.read, each.unread, each.version) for each in receipts} == before
    assert {each.gid for each in receipts} == {"team", renamed_dm(chat)}
    assert chat.confirm_receipts("bob", receipts) == len(receipts)
    assert_clean(chat)
    # And nobody gets those of ann
    chat.ack("bob", "team")
    run_workers(chat)
    assert list(chat.system.client.driver.scan_iter("im:*dirty:erased*")) == []


def test_all_is_hidden_after_the_first_step(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given what SQL alone has, too
    run_workers(chat)
    retention.trim(chat.system, keep_messages=4)
    before = tallies(chat)

    # When the command is killed as soon as all groups are hidden
    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "_empty_sql", killed)
        with pytest.raises(KilledError):
            chat.erase_user(ANN)

    # Then no answer has name or text
    [gid] = [gid for gid in chat.groups_of("bob") if gid.startswith("dm")]
    answers: list[object] = [
        *(chat.status("team", limit=0), chat.pull("cy"), chat.pull("bob"), chat.unread("bob"), chat.receipts("bob")),
        *(chat.history("cy", each, limit=100) for each in ("team", "other")),
        *(chat.message_status("team", msgid) for msgid, *_ in before),
        *(list(chat.members("team")), list(chat.groups()), chat.status(gid), chat.inbox("bob"), chat.inbox("cy")),
        *(chat.why("team", msgid, "cy") for msgid, *_ in before),
    ]
    assert [word for word in GONE if word in repr(answers)] == []
    assert tallies(chat) == before
    # And check says what is under way
    assert [each.what for each in check(chat.system)][1:] == [f"erasure of {ANN!r}"]  # the first: no worker runs
    # And the name cannot be used
    for refused in (
        lambda: chat.add_members("other", [ANN]),
        lambda: chat.create_group("new", [ANN]),
        lambda: chat.send_direct("bob", "hi", sender_uid=ANN),
        lambda: chat.recall("team", before[-1][0], by=ANN, admin=True),
    ):
        with pytest.raises(UserErasing):
            refused()
    with pytest.raises(NotMember):
        chat.send("team", "hi", sender_uid=ANN)

    # When it is repeated, by any process
    assert chat.erase_user(ANN).messages == 8
    assert tallies(chat) == before
    assert_clean(chat)


def test_a_repair_in_the_midst_brings_nothing_back(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    run_workers(chat)
    before = tallies(chat)
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "_hide_all", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            chat.erase_user(ANN)
    # Given an index that somebody has broken
    for gid in ("team", DM):
        chat.system.client.driver.zrem(chat.system.client.space.group(gid).acked, "bob")
    list(check(chat.system, repair=True))
    with suppress(TryAgain):
        erase_user(chat.system, ANN)
    assert [each[0] for each in tallies(chat)] == [each[0] for each in before]
    list(check(chat.system, repair=True))
    chat.erase_user(ANN)
    assert_clean(chat)


def test_the_name_is_a_new_user_afterwards(chat: Chat) -> None:
    chat.erase_user(ANN)
    chat.add_members("team", [ANN])
    assert chat.pull(ANN) == []
    assert chat.history(ANN, "team").messages == ()
    assert chat.receipts(ANN) == []
    sent = chat.send("team", "hello again", sender_uid=ANN, client_msgid=f"{CID}-0")
    assert chat.tally("team", sent.msgid).unread == 2
    direct = chat.send_direct("bob", "new", sender_uid=ANN)
    assert direct.gid == DM
    assert direct.seq == 1
    run_workers(chat)
    assert list(check(chat.system)) == []
    first = {each.message.sender_uid for each in chat.status("team", limit=0)}
    # And can be erased again
    assert chat.erase_user(ANN).messages == 2
    assert len({each.message.sender_uid for each in chat.status("team", limit=0)} - first) == 1
    assert_clean(chat)


def test_a_user_who_is_writing(chat: Chat, other: Chat) -> None:
    # Given ann, who writes and reads as fast as she can, and bob, who reads
    stop = threading.Event()
    refused: list[type[ImError]] = []

    def write() -> None:
        while not stop.is_set():
            try:
                other.send_many("team", [Draft(ANN, f"{TEXT} again") for _ in range(3)])
                other.send_direct("bob", TEXT, sender_uid=ANN)
                other.ack(ANN, "team")
            except ImError as error:
                refused.append(type(error))

    def work() -> None:
        persist = new_persist(other.system.client, other.system.database, other.system.settings)
        while not stop.is_set():
            with suppress(TryAgain):
                persist.step()
        persist.close()

    threads = [threading.Thread(target=target) for target in (write, work)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: chat.group("team").messages > 60)
        chat.erase_user(ANN)  # when
        wait_until(lambda: refused)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    # Then what she wrote is gone; in a chat that she has begun since, she is a new user
    assert {NotMember, UserErasing, UnknownGroup} >= set(refused)
    chat.erase_user(ANN)
    assert_clean(chat)


def test_what_a_worker_holds_is_not_stored_afterwards(chat: Chat) -> None:
    # Given a worker that is about to store, and one whose transaction comes late
    persist = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    persist.step()
    chat.send("team", TEXT, sender_uid=ANN)
    known = chat.system.database.erasures().count
    chat.erase_user(ANN)
    late = Batch(spans=[SpanRow("team", ANN, 0, None, 0, 0)], erasures=known)
    with pytest.raises(TryAgain, match="read again"):
        chat.system.database.write(late)
    with suppress(TryAgain):
        persist.step()
    drain(persist)
    persist.close()
    assert_clean(chat)


def test_postgresql_waits_for_writers_and_not_for_readers(postgres_url: str) -> None:
    with Database.connect(postgres_url) as database, Database.connect(postgres_url) as reader:
        database.upgrade()
        begin = threading.Thread(target=lambda: sql_erasures.begin(database, ANN, "alias"))
        with database.writing() as writer, reader.connection() as reading:
            reading.execute(text("SELECT uid FROM erasures"))
            writer.execute(text("LOCK TABLE erasures IN ROW SHARE MODE"))
            begin.start()
            waits = text("SELECT count(*) FROM pg_locks WHERE relation = 'erasures'::regclass AND NOT granted")
            wait_until(lambda: writer.execute(waits).scalar())
            assert reader.message("g", 1) is None
            assert not reader.erasures().uids
        begin.join()
        assert reader.erasures().uids == {ANN: "alias"}


def test_dead_letters_have_no_name(chat: Chat) -> None:
    # Given a letter of ann's, and one whose reason says her name
    client, space = chat.system.client.driver, chat.system.client.space
    partition = space.partition_of("team")
    client.xadd(space.journal(partition), {"kind": "leave", "gid": "team", "uid": ANN, "joined": "x", "left": "1"})
    run_workers(chat)
    letter = {"dead_worker": "persist", "dead_reason": f"{ANN} is odd", "dead_entry": "1-0", "dead_deliveries": "1"}
    client.xadd(space.dead_letters(partition), {**letter, "kind": "msg", "gid": "team", "first": "1-0"})
    ids = [letter.id for letter in list_dead(chat.system.client)]
    assert leaks(chat, [ANN])

    chat.erase_user(ANN)

    letters = list(list_dead(chat.system.client))
    assert [letter.id for letter in letters] == ids
    assert {letter.reason for letter in letters} == {"its reason is removed, since a user was erased"}
    requeue(chat.system.client, ids[0])
    run_workers(chat)
    assert leaks(chat, GONE) == []


def test_settings_and_deleted_chats_go_too(chat: Chat) -> None:
    # Given a deleted chat, whose gid SQL remembers, one whose deletion has died, and ann's own choice
    chat.set_user(ANN, receipts="off")
    chat.send_direct("cy", TEXT, sender_uid=ANN)
    run_workers(chat)
    chat.delete_group(gid_of(ANN, "cy"))
    chat.send_direct("dee", TEXT, sender_uid=ANN)
    killed = GroupLock(chat.system.client.space.group(gid_of(ANN, "dee")), deletion_calls.DELETE)
    chat.system.client.call(deletion_calls.begin(killed))
    bury_the_dead(chat)
    assert leaks(chat, [ANN])

    chat.erase_user(ANN)

    assert_clean(chat)
    chat.add_members("team", [ANN])
    assert chat.ack(ANN, "team").advanced is False
    sent = chat.send("team", "to be read", sender_uid="bob")
    assert chat.ack(ANN, "team").last_ack_msgid == sent.msgid  # nothing is private for the new user


def test_live_sessions_learn_it(chat: Chat, other: Chat) -> None:
    with other.gateway() as gateway:
        audience = Audience(gateway)
        ann, bob = gateway.open(ANN), gateway.open("bob")
        audience.settled()
        chat.erase_user(ANN)
        say(chat, "after", sender="bob")
        audience.until(lambda: audience.heard(bob)[-1:] == ["after"])
        audience.settled()
        assert audience.heard(ann)[-1:] != ["after"]
        assert audience.heard(bob, renamed_dm(chat)) == ["hi there", ""]


@pytest.fixture
def with_file(tmp_path: Path, settings: Settings) -> Iterator[tuple[Settings, Path]]:
    """A server that keeps an append-only file, and where that is."""
    server = start_valkey(tmp_path / "with file")
    yield replace(settings, redis_url=server.url), server.server.data_dir / "appendonlydir"
    server.stop()


def test_the_append_only_file_is_rewritten(with_file: tuple[Settings, Path]) -> None:
    settings, file = with_file
    with Chat.connect(settings=settings) as chat:
        chat.system.database.upgrade()
        chat.create_group("team", [ANN, "bob"])
        chat.send("team", TEXT, sender_uid=ANN, client_msgid=CID)
        chat.send_direct("bob", TEXT, sender_uid=ANN)
        run_workers(chat)
        chat.erase_user(ANN)
        run_workers(chat)
        assert files_with(ANN, file)
        assert append_only.forget_withdrawn(chat.system) == 1
        wait_until(lambda: not any(files_with(word, file) for word in GONE), 3)
        assert len(append_only.noted(chat.system.client)) == 0


def test_sql_knows_of_it_until_servers_have_it_on_their_disks(
    with_file: tuple[Settings, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that loses the last seconds, when SQL has forgotten the erasure, would bring name and texts back."""
    wait, known = append_only.wait_until_synced, []

    def noted(client: RedisClient) -> None:
        begun = time.monotonic()
        wait(client)
        is_waiting = time.monotonic() - begun >= append_only.SYNC_S
        known.append((is_waiting, chat.system.database.erasures().uids.keys(), leaks(chat, GONE)))

    monkeypatch.setattr(append_only, "wait_until_synced", noted)
    with Chat.connect(settings=with_file[0]) as chat:
        chat.system.database.upgrade()
        chat.create_group("team", [ANN, "bob"])
        chat.send("team", TEXT, sender_uid=ANN, client_msgid=CID)
        run_workers(chat)
        chat.erase_user(ANN)

    [(is_waiting, uids, found)] = known
    assert is_waiting
    assert uids == {ANN}
    assert [where for where in found if where.startswith("Redis") and "erasing" not in where] == []


def test_on_a_cluster(cluster: str, settings: Settings, sqlite_url: str) -> None:
    with Chat.connect(settings=replace(settings, redis_url=cluster, database_url=sqlite_url)) as chat:
        chat.system.database.upgrade()
        for number in range(4):
            chat.create_group(f"group {number}", [ANN, "bob"])
            chat.send(f"group {number}", TEXT, sender_uid=ANN)
        chat.send_direct("bob", TEXT, sender_uid=ANN)
        assert chat.erase_user(ANN).messages == 5
        assert_clean(chat)


def test_under_asyncio(chat: Chat, settings: Settings) -> None:
    async def story() -> None:
        async with AsyncChat.connect(settings=settings) as other:
            assert (await other.erase_user(ANN)).messages == 8

    asyncio.run(story())
    assert chat.groups_of(ANN) == []


def test_a_user_whom_nobody_knows(chat: Chat) -> None:
    found: Any = chat.erase_user("nobody")
    assert found.messages == 0
    assert list(check(chat.system))[1:] == []
