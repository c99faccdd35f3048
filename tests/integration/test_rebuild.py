"""Redis from SQL: after any history, every query has the same answer before and after.

`IM_MODEL_EXAMPLES=500 pytest tests/integration/test_rebuild.py` plays that many histories, by chance.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Connection, text

from imcore import Chat
from imcore import msgid as msgids
from imcore.admin.stats import stats
from imcore.errors import ConfigurationError, DatabaseUnavailable, RedisUnavailable, RefusedError, TryAgain
from imcore.model.values import Message
from imcore.repair.check import check
from imcore.repair.rebuild import RebuildSummary, rebuild
from imcore.repair.watch import Watch
from imcore.repair.window import lost_watermarks
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient, open_client
from imcore.streams.keys import CONFIG, REBUILD, REBUILDING, lease
from imcore.system import System
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.dying import Dying, KilledError, bury_the_dead
from tests.helpers.persist_runs import new_persist
from tests.helpers.workers import persist
from tests.model.examples import PARTITIONS, played
from tests.model.lost import LosingHistories

GIDS = ("#ubuntu", "群主")
UIDS = ("ann", "bob", "cy", "dee")
HOUR = 3_600_000


@pytest.fixture
def new_database(tmp_path: Path) -> Callable[[], Database]:
    """Makes an empty database, each time: a copy, because migrations take their time."""
    with Database.connect(f"sqlite:///{tmp_path / 'template.db'}") as template:
        template.upgrade()
        template.set_meta("partitions", str(PARTITIONS))
    numbers = count()

    def new() -> Database:
        path = tmp_path / f"{next(numbers)}.db"
        shutil.copy(tmp_path / "template.db", path)
        return Database.connect(f"sqlite:///{path}")

    return new


@pytest.fixture
def chat(valkey: str, database_url: str) -> Iterator[Chat]:
    """A chat in part read, by members who came and went."""
    with opened(valkey, database_url) as chat:
        chat.system.database.upgrade()
        for gid in GIDS:
            chat.create_group(gid, UIDS)
            for number in range(20):
                chat.send(gid, f"message {number}", sender_uid=UIDS[number % 3], client_msgid=f"c{number}")
            chat.ack("bob", gid, chat.pull("bob", gid, limit=9)[-1].msgid)
            chat.remove_members(gid, ["cy"])
        persist(chat)
        yield chat


def opened(valkey: str, database_url: str, **changes: Any) -> Chat:
    settings = replace(Settings.from_env({}), block_ms=0, retry_ms=0, partitions=PARTITIONS, **changes)
    return Chat.connect(valkey, database_url, settings=settings)


def _later(now_ns: Callable[[], int], ms: int) -> int:
    return now_ns() + ms * 1_000_000


def newest(chat: Chat, gid: str) -> Message:
    return chat.status(gid, limit=1)[0].message


def test_histories_in_which_redis_loses_all(valkey: str, new_database: Callable[[], Database]) -> None:
    def open_chat() -> Chat:
        client = open_client(valkey)
        client.flushall()
        return Chat(System(RedisClient(client, partitions=PARTITIONS), new_database(), Settings.from_env({})))

    run_state_machine_as_test(lambda: LosingHistories(open_chat), settings=played(10))


def test_histories_in_which_a_cluster_loses_all(cluster: str, new_database: Callable[[], Database]) -> None:
    def open_chat() -> Chat:
        client = open_client(cluster)
        client.flushall()
        return Chat(System(RedisClient(client, partitions=PARTITIONS), new_database(), Settings.from_env({})))

    run_state_machine_as_test(lambda: LosingHistories(open_chat), settings=played(2))


def test_sends_after_a_rebuild_have_higher_ids_and_seqs_if_the_clock_is_behind(chat: Chat) -> None:
    # Given messages of a server whose clock was an hour ahead
    gid, other = GIDS
    ahead = int(newest(chat, gid).msgid.partition("-")[0]) + HOUR
    chat.system.client.driver.execute_command("XSETID", chat.system.client.space.group(gid).stream, f"{ahead}-8190")
    chat.system.client.driver.execute_command("XSETID", chat.system.client.space.group(gid).journal, f"{ahead}-8190")
    said = [chat.send(gid, "from the future", sender_uid="ann") for _ in range(3)]
    chat.remove_members(gid, ["dee"])
    persist(chat)
    chat.system.client.driver.flushall()
    # When
    rebuild(chat.system)
    # Then
    message = chat.send(gid, "now", sender_uid="ann")
    assert (message.seq, chat.send(other, "now", sender_uid="ann").seq) == (said[-1].seq + 1, 21)
    assert msgids.pack(message.msgid) > msgids.pack(said[-1].msgid)
    # And what happens in the group is later than what SQL knows, too
    chat.add_members(gid, ["dee"])
    chat.remove_members(gid, ["bob"])
    persist(chat)
    assert list(check(chat.system)) == []
    assert [member.uid for member in chat.members(gid)] == ["ann", "dee"]


@pytest.mark.parametrize("ahead_ms", [0, 48 * HOUR])
def test_rebuild_restores_client_msgids(chat: Chat, monkeypatch: pytest.MonkeyPatch, ahead_ms: int) -> None:
    before = chat.status(GIDS[0], limit=0)[3].message
    chat.system.client.driver.flushall()
    monkeypatch.setattr("imcore.repair.window.time.time_ns", partial(_later, time.time_ns, ahead_ms))
    rebuild(chat.system)
    assert chat.send(GIDS[0], "again", sender_uid=before.sender_uid, client_msgid=before.client_msgid) == before


def repair(chat: Chat) -> None:
    assert list(check(chat.system, repair=True))


@pytest.mark.parametrize("left", [2, 4, 6, 9, 12, 15])
@pytest.mark.parametrize("end", [persist, repair])
def test_client_msgids_are_known_after_a_broken_off_rebuild(chat: Chat, end: Callable[[Chat], None], left: int) -> None:
    # Given messages, a few of them to be kept in Redis, and a rebuild that is killed
    sent = [tally.message for gid in GIDS for tally in chat.status(gid, limit=0)]
    chat.system.settings = replace(chat.system.settings, keep_messages=3)
    killed_rebuild(chat, left)
    # When somebody else ends it
    end(chat)
    # Then each message is known again, also those that only SQL has
    again = [chat.send(m.gid, "again", sender_uid=m.sender_uid, client_msgid=m.client_msgid) for m in sent]
    assert [message.msgid for message in again] == [message.msgid for message in sent]
    assert list(check(chat.system)) == []


def test_rebuild_restores_no_expired_client_msgids(chat: Chat) -> None:
    # Given messages that are older than a repeated send may be
    chat.system.settings = replace(chat.system.settings, idempotency_ms=1)
    killed_rebuild(chat, 2)
    # When somebody else ends the rebuild
    repair(chat)
    # Then Redis has all messages, and keeps nothing of what made them
    for k in map(chat.system.client.space.group, GIDS):
        assert chat.system.client.driver.xlen(k.stream) == 20
        assert not chat.system.client.driver.exists(k.idempotency_newer, k.idempotency_older)


def killed_rebuild(chat: Chat, left: int) -> None:
    """Empty Redis, and kill its rebuild after `left` calls."""
    chat.system.client.driver.flushall()
    redis_client, chat.system.client = chat.system.client, Dying(chat.system.client.driver, partitions=PARTITIONS)
    try:
        chat.system.client.upgrade()
        chat.system.client.left = left + 7
        rebuild(chat.system)
    except KilledError:
        pass
    finally:
        chat.system.client = redis_client
    assert redis_client.driver.hexists(CONFIG, REBUILDING)
    bury_the_dead(chat)


def test_rebuild_restores_unconfirmed_receipts_only(chat: Chat) -> None:
    # Given receipts of ann: one she has confirmed, one that changed again after that
    receipts = ReceiptsWorker(
        chat.system.client, chat.system.database, replace(chat.system.settings, receipt_window_ms=0)
    )
    receipts.step()
    published = [receipt for receipt in chat.receipts("ann") if receipt.gid == GIDS[0]]
    chat.confirm_receipts("ann", published[:2])
    chat.ack("dee", GIDS[0], published[0].msgid)
    while receipts.step():
        pass
    persist(chat)
    before = chat.receipts("ann")
    assert published[0].msgid in {receipt.msgid for receipt in before}
    assert published[1].msgid not in {receipt.msgid for receipt in before if receipt.gid == GIDS[0]}
    # When
    chat.system.client.driver.flushall()
    summary = rebuild(chat.system)
    # Then
    after = chat.receipts("ann")
    assert [replace(receipt, version=0) for receipt in after] == [replace(receipt, version=0) for receipt in before]
    assert summary.receipts == sum(len(chat.receipts(uid)) for uid in UIDS)
    # And confirming receipts of before the loss does not confirm later ones
    assert chat.confirm_receipts("ann", before) == 0
    assert chat.confirm_receipts("ann", after) == len(after)


def test_rebuild_refuses_existing_groups_without_yes(chat: Chat) -> None:
    # Given a message that only Redis has
    chat.send(GIDS[0], "not stored", sender_uid="ann")
    # When, then
    with pytest.raises(RefusedError, match="holds 2 groups"):
        rebuild(chat.system)
    summary = rebuild(chat.system, yes=True)
    assert (summary.groups, summary.merged) == (0, 2)
    assert newest(chat, GIDS[0]).content == "not stored"
    persist(chat)
    assert list(check(chat.system)) == []


def test_rebuild_merges_a_group_that_was_created_again(chat: Chat) -> None:
    # Given that all is lost, and people continue to write to each other
    chat.send_direct("ann", "before", sender_uid="bob")
    persist(chat)
    chat.system.client.driver.flushall()
    gid = chat.send_direct("ann", "since", sender_uid="bob", client_msgid="c").gid
    # When
    rebuild(chat.system, yes=True)
    # Then
    assert [(message.content, message.seq) for message in chat.pull("ann", gid)] == [("before", 1), ("since", 2)]
    assert chat.send_direct("ann", "since", sender_uid="bob", client_msgid="c").seq == 2
    persist(chat)
    assert list(check(chat.system)) == []


def test_rebuild_updates_an_older_snapshot(chat: Chat) -> None:
    # Given Redis as it was, without what was stored since
    client = chat.system.client.driver
    saved = {key: client.dump(key) for key in client.scan_iter()}
    for number in range(5):
        chat.send(GIDS[0], f"later {number}", sender_uid="bob")
    chat.ack("ann", GIDS[0])
    chat.add_members(GIDS[1], ["eve"])
    persist(chat)
    before = chat.status(GIDS[0], limit=0), chat.unread("ann"), list(chat.members(GIDS[1]))
    client.flushall()
    for key, value in saved.items():
        client.restore(key, 0, value)
    # When
    rebuild(chat.system, yes=True)
    # Then
    assert (chat.status(GIDS[0], limit=0), chat.unread("ann"), list(chat.members(GIDS[1]))) == before
    assert list(check(chat.system)) == []


def test_rebuild_closes_holes_in_seqs(chat: Chat) -> None:
    # Given a message that neither side has any more
    lost = chat.status(GIDS[0], limit=0)[7].message
    with chat.system.database.connection() as connection:
        statement = text("DELETE FROM group_msgs WHERE gid = :gid AND msgid = :msgid")
        connection.execute(statement, {"gid": GIDS[0], "msgid": msgids.pack(lost.msgid)})
    chat.system.client.driver.flushall()
    # When
    summary = rebuild(chat.system)
    # Then
    assert summary.renumbered == 12
    assert [tally.message.seq for tally in chat.status(GIDS[0], limit=0)] == list(range(1, 20))
    assert list(check(chat.system)) == []


def test_rebuild_refuses_another_number_of_partitions(chat: Chat, valkey: str, database_url: str) -> None:
    # Given that somebody has begun anew on the empty server
    chat.system.client.driver.flushall()
    with Chat.connect(valkey, database_url, settings=replace(Settings.from_env({}), partitions=5)) as other:
        other.create_group("new", ["ann"])
        # When, then
        with pytest.raises(ConfigurationError, match="in 5 partitions"):
            rebuild(other.system, yes=True)


def test_no_worker_stores_during_a_rebuild(chat: Chat) -> None:
    # Given
    chat.system.client.driver.flushall()
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    refused: list[str] = []

    def store(_: RebuildSummary) -> None:
        try:
            worker.step()
        except RedisUnavailable as error:
            refused.append(str(error))

    # When, then
    rebuild(chat.system, on_progress=store)
    assert refused
    assert set(refused) == {"Redis is being rebuilt from SQL: nothing is stored until that is done"}
    assert worker.step() == 0
    worker.close()


@pytest.mark.parametrize("stalls_at", range(4))
def test_stalled_rebuild_leaves_the_next_one_alone(chat: Chat, monkeypatch: pytest.MonkeyPatch, stalls_at: int) -> None:
    # Given a rebuild that stalls between two steps until another process begins one
    monkeypatch.setattr("imcore.repair.rebuild.GROUPS", 1)
    client, rebuilt = chat.system.client.driver, chat.system.client.space.rebuilt(0)
    client.flushall()
    steps = count()

    def stall(_: RebuildSummary) -> None:
        if next(steps) == stalls_at:
            begin_another(chat)
            client.sadd(rebuilt, "done by the other one")

    # When it continues
    with pytest.raises(TryAgain, match="another process has gone on with this rebuild"):
        rebuild(chat.system, on_progress=stall)
    # Then all that is the other one's is there, and nobody takes Redis for whole
    assert client.hget(CONFIG, REBUILDING) == b"other"
    assert client.get(lease(REBUILD, 1)) == b"other 5000"
    assert client.sismember(rebuilt, "done by the other one")
    assert lost_watermarks(chat.system)


def test_stalled_rebuild_stops_if_a_worker_has_ended_it(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.repair.rebuild.GROUPS", 1)
    chat.system.client.driver.flushall()

    def stall(_: RebuildSummary) -> None:
        chat.system.client.driver.delete(lease(REBUILD, 1))
        persist(chat)

    with pytest.raises(TryAgain, match="another process has gone on with this rebuild"):
        rebuild(chat.system, on_progress=stall)
    assert not chat.system.client.driver.hexists(CONFIG, REBUILDING)
    assert list(check(chat.system)) == []


def test_worker_that_ends_a_rebuild_leaves_the_next_one_alone(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a rebuild that was broken off, and another one that begins while a worker repairs its leftovers
    killed_rebuild(chat, 2)
    mend_all = Watch._mend_all

    def mend(watch: Watch) -> None:
        mend_all(watch)
        begin_another(chat)

    monkeypatch.setattr(Watch, "_mend_all", mend)
    worker = new_persist(chat.system.client, chat.system.database, chat.system.settings)
    # When, then
    with pytest.raises(RedisUnavailable, match="is being rebuilt"):
        worker.step()
    assert chat.system.client.driver.hget(CONFIG, REBUILDING) == b"other"


def test_check_that_ends_a_rebuild_leaves_the_next_one_alone(chat: Chat) -> None:
    # Given a rebuild that was broken off, and another one that begins, and is broken off, while a check repairs
    killed_rebuild(chat, 2)

    def begin(*_: int) -> None:
        begin_another(chat)
        chat.system.client.driver.delete(lease(REBUILD, 1))

    # When
    [difference] = [each for each in check(chat.system, repair=True, on_progress=begin) if each.what == "rebuild"]
    # Then
    assert not difference.repaired
    assert chat.system.client.driver.hget(CONFIG, REBUILDING) == b"other"


def begin_another(chat: Chat) -> None:
    """Begin a rebuild as another process would, after the lease of this one has ended."""
    chat.system.client.driver.hset(CONFIG, REBUILDING, "other")
    chat.system.client.driver.set(lease(REBUILD, 1), "other 5000", px=5000)


@pytest.mark.parametrize("left", range(1, 34, 4))
def test_killed_rebuild_of_sound_data_stops_no_storing(chat: Chat, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    # Given a sound system, in which some entries are not stored yet
    sent = [chat.send(gid, "before", sender_uid="ann") for gid in GIDS]
    # When a rebuild is killed, and the system continues
    dying = Dying(chat.system.client.driver, partitions=PARTITIONS)
    with monkeypatch.context() as patch:
        patch.setattr(chat.system, "client", dying)
        dying.left = left
        with suppress(KilledError):
            rebuild(chat.system, yes=True)
        dying.left = 10**9
    chat.system.client.driver.delete(lease(REBUILD, 1))
    sent += [chat.send(gid, "after", sender_uid="dee") for gid in GIDS]
    persist(chat)
    # Then all is stored
    assert [chat.system.database.messages(message.gid, [msgids.pack(message.msgid)]) for message in sent].count({}) == 0
    assert list(check(chat.system)) == []


@pytest.mark.parametrize("fails_at", range(0, 24, 3))
@pytest.mark.parametrize("is_lost", [False, True])
def test_rebuild_that_sql_breaks_off_stops_no_storing(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails_at: int, is_lost: bool
) -> None:
    # Given a database that fails at one of its transactions
    database, left = chat.system.database, [fails_at]
    whole = Database.connection

    @contextmanager
    def failing(database: Database) -> Iterator[Connection]:
        left[0] -= 1
        if left[0] < 0:
            raise DatabaseUnavailable("the database is read-only")
        with whole(database) as connection:
            yield connection

    if is_lost:
        chat.system.client.driver.flushall()
    # When Redis is rebuilt
    with monkeypatch.context() as patch:
        patch.setattr(Database, "connection", failing)
        try:
            rebuild(chat.system, yes=True)
        except DatabaseUnavailable:
            has_failed = True
        else:
            has_failed = False
    # Then a worker brings it to its end, and says so if it had begun
    has_begun = chat.system.client.driver.hexists(CONFIG, REBUILDING)
    assert has_failed or not has_begun
    assert stats(chat.system).rebuild == ("broken off" if has_begun else None)
    if is_lost and not has_begun:
        rebuild(chat.system, yes=True)
    if is_lost:
        persist(chat)
    sent = [chat.send(gid, "after", sender_uid="dee") for gid in GIDS]
    persist(chat)
    assert ("a rebuild of Redis was broken off" in caplog.text) == has_begun
    assert all(database.messages(message.gid, [msgids.pack(message.msgid)]) for message in sent)
    assert list(check(chat.system)) == []


def test_rebuild_refuses_an_empty_database(chat: Chat, valkey: str, tmp_path: Path) -> None:
    # Given a forgotten IM_DATABASE_URL
    with opened(valkey, f"sqlite:///{tmp_path / 'empty.db'}") as forgotten:
        forgotten.system.database.upgrade()
        config = chat.system.client.driver.hgetall(CONFIG)
        # When, then
        for adopt in (False, True):
            with pytest.raises(RefusedError, match=r"is empty, though .* holds 2 groups: set IM_DATABASE_URL"):
                rebuild(forgotten.system, yes=True, adopt=adopt)
        # And it belongs to no data, and Redis waits for no rebuild
        assert forgotten.system.database.meta("dataset") is None
        assert chat.system.client.driver.hgetall(CONFIG) == config
        with pytest.raises(DatabaseUnavailable, match="set IM_DATABASE_URL"):
            persist(forgotten)


@pytest.mark.parametrize("ahead", [1 << 62, 1_000_000_000_000])
@pytest.mark.parametrize("is_there", [False, True])
def test_rebuild_restores_no_impossible_offset(
    chat: Chat, caplog: pytest.LogCaptureFixture, ahead: int, is_there: bool
) -> None:
    # Given one, of a member whom Redis may still have
    gid, before = GIDS[0], newest(chat, GIDS[0])
    stands = {member.uid: member.last_ack_msgid for member in chat.members(gid)}["bob"]
    instead = stands if is_there else before.msgid
    with chat.system.database.connection() as connection:
        statement = text("UPDATE group_spans SET acked_msgid = acked_msgid + :ahead WHERE gid = :gid AND uid = 'bob'")
        connection.execute(statement, {"ahead": ahead, "gid": gid})
    if not is_there:
        chat.system.client.driver.flushall()
    # When
    rebuild(chat.system, yes=True)
    # Then it is reported, and ids continue as before
    assert [record.getMessage() for record in caplog.records if "no message can have" in record.getMessage()] == [
        f"group {gid!r}: SQL had offsets or ends that no message can have; now: 'bob' open, offset {instead}"
    ]
    assert msgids.time_of(chat.send(gid, "after", sender_uid="ann").msgid) - msgids.time_of(before.msgid) < timedelta(1)
    persist(chat)
    assert list(check(chat.system)) == []
    assert {member.uid: member.last_ack_msgid for member in chat.members(gid)}["bob"] == instead
