"""Deleted groups on fakeredis and SQLite: nothing of them is left, and nothing brings them back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imcore import Chat, Draft
from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    DatabaseUnavailable,
    GroupUnderWay,
    ImError,
    InvalidInput,
    NotMember,
    TryAgain,
    UnknownGroup,
    UnknownMessage,
)
from imcore.model.direct import gid_of
from imcore.model.values import DeletedGroup
from imcore.operations import creation, deletion
from imcore.repair.check import check
from imcore.settings import Settings
from imcore.sql import deletion as sql_deletion
from imcore.sql.database import Database
from imcore.streams import dead_letters
from imcore.streams.calls import deletion_calls, repair_calls
from imcore.streams.calls.repair_calls import GroupLock
from imcore.streams.client import RedisClient
from imcore.streams.keys import CONFIG, REBUILDING
from imcore.system import System
from imcore.util.batches import grouped
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.cli import im, let_commands_use
from tests.helpers.dying import Dying, KilledError
from tests.helpers.persist_runs import new_persist
from tests.helpers.rows import stored
from tests.helpers.workers import drain, persist, run_workers

GID, OTHER = "team", "other"


@pytest.fixture
def partitions() -> int:
    """One, so that all groups share all keys."""
    return 1


@pytest.fixture
def chat(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Two groups of three, where a worker has been."""
    monkeypatch.setattr(deletion, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(creation, "_PATIENCE_S", 0.0)
    for gid in (GID, OTHER):
        chat.create_group(gid, ["ann", "bob", "cy"])
    run_workers(chat)
    return chat


def talk(chat: Chat, gid: str = GID) -> None:
    """Everything that leaves something in Redis or in SQL."""
    first = chat.send(gid, "one", sender_uid="ann", client_msgid="c1", meta={"a": 1})
    chat.send_many(gid, [Draft("bob", "two", "c2"), Draft("ann", "three"), Draft("bob", "four")])
    chat.ack("bob", gid, first.msgid)
    chat.ack("cy", gid)
    chat.recall(gid, first.msgid, by="ann")
    chat.add_members(gid, ["dan", "eve"])
    chat.remove_members(gid, ["cy"])
    chat.send(gid, "five", sender_uid="dan")
    chat.ack("eve", gid)


def keys(chat: Chat) -> dict[str, Any]:
    """What is in Redis of groups and users: sets, sorted sets and lists with their members, all else by name."""
    client, found = chat.system.client, {}
    for key in sorted(each.decode() for each in chat.system.client.driver.keys("*")):
        kind = client.driver.type(key)
        read = {b"set": ("SMEMBERS", key), b"list": ("LRANGE", key, 0, -1), b"zset": ("ZRANGE", key, 0, -1)}.get(kind)
        found[key] = sorted(client.query(*read)) if read else None
    return found


def tables(database: Database) -> dict[str, list[str]]:
    """The gids of the rows of each table."""
    batch = stored(database)
    rows = [*batch.groups, *batch.messages, *batch.spans, *batch.moves]
    return {name: sorted(gids) for name, gids in grouped((type(row).__name__, row.gid) for row in rows).items()}


def nobody_sees(chat: Chat, gid: str = GID) -> None:
    assert gid not in [group.gid for group in chat.groups()]
    for uid in ("ann", "bob", "cy", "dan", "eve"):
        assert gid not in chat.groups_of(uid)
        assert gid not in [each.gid for each in chat.unread(uid)]
        assert gid not in [receipt.gid for receipt in chat.receipts(uid)]
    for refused in (
        lambda: chat.group(gid),
        lambda: chat.send(gid, "hi", sender_uid="ann"),
        lambda: chat.ack("ann", gid),
        lambda: chat.pull("ann", gid),
        lambda: chat.add_members(gid, ["fay"]),
        lambda: chat.status(gid),
        lambda: list(chat.members(gid)),
    ):
        with pytest.raises((UnknownGroup, UnknownMessage, NotMember, InvalidInput)):
            refused()


@pytest.fixture(params=["stored", "not stored"])
def settle(request: pytest.FixtureRequest, chat: Chat) -> Callable[[], None]:
    return (lambda: run_workers(chat)) if request.param == "stored" else (lambda: None)


def test_nothing_of_a_deleted_group_is_left(chat: Chat, settle: Callable[[], None]) -> None:
    # Given a world, and all that happens in one more group of it
    talk(chat, OTHER)
    run_workers(chat)
    before, rows = keys(chat), tables(chat.system.database)
    chat.create_group("more", ["ann", "bob", "cy"])
    talk(chat, "more")
    settle()

    # When that is deleted
    assert chat.delete_group("more") == DeletedGroup("more", 6)

    # Then both sides are as before it, whatever workers still find in the journal
    nobody_sees(chat, "more")
    withdrawn = chat.system.client.space.group("more").withdrawn
    note = before.get(withdrawn, [])
    for _ in range(2):
        left = keys(chat)
        assert [each for each in left.pop(withdrawn) if each not in note and not each.startswith(b"more\x1f")] == []
        assert left == {key: value for key, value in before.items() if key != withdrawn}
        run_workers(chat)
        assert tables(chat.system.database) == rows
    assert list(dead_letters.list_dead(chat.system.client)) == []
    assert list(check(chat.system)) == []
    with pytest.raises(UnknownGroup):
        chat.delete_group("more")


def test_a_new_group_of_the_same_gid_is_a_new_group(chat: Chat, settle: Callable[[], None]) -> None:
    # Given a deleted group
    talk(chat)
    settle()
    chat.delete_group(GID)

    # When another one gets its gid
    assert chat.create_group(GID, ["bob", "fay"]).members == 2
    sent = chat.send(GID, "anew", sender_uid="bob", client_msgid="c2")

    # Then it begins from the beginning
    assert (sent.seq, sent.content, sent.recipients) == (1, "anew", 1)
    assert [member.uid for member in chat.members(GID)] == ["bob", "fay"]
    chat.ack("fay", GID)
    run_workers(chat)
    assert [row.content for row in chat.system.database.messages_after(GID, 0)] == ["anew"]
    assert chat.message_status(GID, sent.msgid).read_by[0].uid == "fay"
    assert list(check(chat.system)) == []
    assert list(dead_letters.list_dead(chat.system.client)) == []
    assert chat.delete_group(GID) == DeletedGroup(GID, 1)


def test_a_one_to_one_chat(chat: Chat) -> None:
    gid = gid_of("ann", "bob")
    chat.send_direct("bob", "hi", sender_uid="ann")
    assert chat.delete_group(gid) == DeletedGroup(gid, 1)
    nobody_sees(chat, gid)
    assert chat.send_direct("bob", "hi again", sender_uid="ann").seq == 1
    run_workers(chat)
    assert list(check(chat.system)) == []


def test_before_any_worker(client: RedisClient, database: Database, settings: Settings) -> None:
    """Workers find nothing of it later. A database that lacks what others have stored is refused."""
    with Chat(System(client, database, settings)) as chat:
        chat.create_group(GID, ["ann", "bob"])
        chat.send(GID, "hi", sender_uid="ann")
        assert chat.delete_group(GID).messages == 1
        run_workers(chat)
        assert stored(database).gids == []
        assert list(dead_letters.list_dead(client)) == []
        assert list(check(chat.system)) == []
        chat.create_group(GID, ["ann"])
        database.set_meta("dataset", "")
        with pytest.raises(ConfigurationError):
            Chat(chat.system).delete_group(GID)


def test_a_dead_letter_about_it_brings_nothing_back(chat: Chat) -> None:
    # Given a join that no worker could store
    chat.add_members(GID, ["dan"])
    client, journal = chat.system.client, chat.system.client.space.group(GID).journal
    [(entry, _)] = client.query("XREVRANGE", journal, "+", "-", "COUNT", 1)
    drain(ReceiptsWorker(client, chat.system.database, chat.system.settings))
    worker = new_persist(client, chat.system.database, chat.system.settings)
    worker._journal.read()
    client.execute_once("XGROUP CREATE", journal, "unused", "$")
    [letter_id] = [
        client.driver.fcall(
            "im_fail",
            3,
            journal,
            client.space.dead_letters(0),
            client.space.failures(0),
            "persist",
            entry,
            "by hand",
            1,
        )[1]
    ]
    client.execute_once("XGROUP DESTROY", journal, "unused")
    worker.close()

    # When it is put back after the deletion
    chat.delete_group(GID)
    dead_letters.requeue(client, f"0:{letter_id.decode()}")
    run_workers(chat)

    # Then nothing comes of it
    assert GID not in tables(chat.system.database)["SpanRow"]
    assert list(check(chat.system)) == []


def test_receipts_of_other_groups_stay(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a user with so many receipts that they are looked through in pages
    for gid in (GID, OTHER, f"{GID}2"):
        if gid not in (GID, OTHER):
            chat.create_group(gid, ["ann", "bob"])
        sent = chat.send_many(gid, [Draft("ann", f"message {number}") for number in range(1500)])
        assert not any(isinstance(each, ImError) for each in sent)
        chat.ack("bob", gid)
    run_workers(chat)
    assert len(chat.receipts("ann")) == 4500

    chat.delete_group(GID)

    assert {receipt.gid for receipt in chat.receipts("ann")} == {OTHER, f"{GID}2"}
    assert len(chat.receipts("ann")) == 3000
    assert chat.system.client.query("ZCARD", chat.system.client.space.dirty(0, "ann")) == 3000


class TestKills:
    def test_a_deletion_killed_at_any_step_is_ended_by_the_next_one(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(repair_calls, "release", _killed)  # the dead release nothing
        step, is_killed, by_worker = 0, True, False
        while is_killed:
            # Given a process that dies after one more step
            gid, step = f"group {step}", step + 1
            chat.create_group(gid, ["ann", "bob", "cy"])
            talk(chat, gid)
            run_workers(chat)
            dying = Dying(chat.system.client.driver, partitions=1)
            dying.space  # noqa: B018 (it is asked for now)
            is_killed, dying.left = self.is_killed(Chat(_with(chat, dying)), gid, step), 10**9

            # Then it has not begun, or nobody sees the group; and nothing differs
            has_begun = gid not in [group.gid for group in chat.groups()]
            if has_begun:
                nobody_sees(chat, gid)
            assert list(check(chat.system)) == []

            # And the same again ends it, or a worker
            self.let_lock_end(chat, gid)
            if is_killed and has_begun and (by_worker := not by_worker):
                persist(chat)
            elif is_killed:
                self.delete_again(chat, gid)
            nobody_sees(chat, gid)
            assert not list(chat.system.client.driver.keys(f"*:{gid}*"))
            assert gid not in {each for gids in tables(chat.system.database).values() for each in gids}
            run_workers(chat)
            assert list(check(chat.system)) == []
            assert chat.create_group(gid, ["ann"]).messages == 0
        assert step > 10

    def is_killed(self, chat: Chat, gid: str, step: int) -> bool:
        client = chat.system.client
        assert isinstance(client, Dying)
        client.left = step
        try:
            chat.delete_group(gid)
        except KilledError:
            return True
        return False

    def let_lock_end(self, chat: Chat, gid: str) -> None:
        locks = chat.system.client.space.group(gid).group_locks
        if holder := chat.system.client.query("HGET", locks, gid):
            chat.system.client.execute_once("HSET", locks, gid, f"{holder.decode().split()[0]} 1 5000")

    def delete_again(self, chat: Chat, gid: str) -> None:
        try:
            assert chat.delete_group(gid).messages == 6
        except UnknownGroup:
            assert not chat.system.client.query("HGET", chat.system.client.space.deleting(0), gid)

    def test_while_it_is_deleted_it_is_not_created(self, chat: Chat) -> None:
        # Given a deletion whose process lives
        client, k = chat.system.client, chat.system.client.space.group(GID)
        lock = GroupLock(k, deletion.new_token())
        client.call(deletion_calls.begin(lock))

        # Then others wait for its end
        for refused in (lambda: chat.create_group(GID, ["ann"]), lambda: chat.delete_group(GID)):
            with pytest.raises(GroupUnderWay, match="'team' is being deleted: try again"):
                refused()
        run_workers(chat)
        assert chat.system.client.query("HGET", k.deleting, GID)
        assert list(check(chat.system)) == []

    def test_sql_that_goes_away_leaves_a_hidden_group(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        talk(chat)
        with monkeypatch.context() as patch:
            patch.setattr(sql_deletion, "begin", _away)
            with pytest.raises(DatabaseUnavailable):
                chat.delete_group(GID)
        nobody_sees(chat)
        assert chat.delete_group(GID).messages == 6
        run_workers(chat)
        assert list(check(chat.system)) == []


def _killed(*_: object, **__: object) -> None:
    raise KilledError


def _away(*_: object) -> None:
    raise DatabaseUnavailable


def _with(chat: Chat, client: Dying) -> Any:
    return type(chat.system)(client, chat.system.database, chat.system.settings)


class TestRefusals:
    def unchanged(self, chat: Chat, error: type[ImError], match: str, gid: str = GID) -> None:
        before = keys(chat), tables(chat.system.database)
        with pytest.raises(error, match=match):
            chat.delete_group(gid)
        assert (keys(chat), tables(chat.system.database)) == before

    def test_what_is_no_group(self, chat: Chat) -> None:
        self.unchanged(chat, UnknownGroup, "there is no group 'none'", "none")
        self.unchanged(chat, InvalidInput, "gid is empty", "")

    def test_a_database_without_tables(self, chat: Chat, tmp_path: Path) -> None:
        with Database.connect(f"sqlite:///{tmp_path / 'none.db'}") as missing:
            other = Chat(System(chat.system.client, missing, chat.system.settings))
            before = keys(chat)
            with pytest.raises(DatabaseNotReady):
                other.delete_group(GID)
            assert keys(chat) == before

    def test_a_database_with_other_data(self, chat: Chat) -> None:
        chat.system.database.set_meta("dataset", "another")
        with pytest.raises(ConfigurationError, match="holds the data of another system"):
            Chat(chat.system).delete_group(GID)
        chat.system.database.set_meta("dataset", "")
        assert chat.group(GID).members == 3

    def test_under_repair(self, chat: Chat) -> None:
        lock = GroupLock(chat.system.client.space.group(GID), "repair")
        chat.system.client.call(repair_calls.lock(lock))
        self.unchanged(chat, TryAgain, "another process mends 'team'")
        chat.system.client.call(repair_calls.release(lock, done=True))
        chat.delete_group(GID)

    def test_while_redis_is_rebuilt(self, chat: Chat) -> None:
        chat.system.client.execute_once("HSET", CONFIG, REBUILDING, "token")
        self.unchanged(chat, TryAgain, "is being rebuilt from SQL")

    def test_while_it_is_created(self, chat: Chat) -> None:
        chat.system.client.call(creation.creation_calls.begin(chat.system.client.space, "new", "token"))
        self.unchanged(chat, GroupUnderWay, "another process creates group 'new'", "new")


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def chat(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Chat:
        let_commands_use(chat.system, monkeypatch)
        return chat

    def test_it_prints_how_many_messages_there_were(self, chat: Chat) -> None:
        talk(chat)
        result = im("group", "delete", GID, "--yes", "--json")
        assert (result.exit_code, json.loads(result.stdout)) == (0, {"gid": GID, "messages": 6})
        assert im("group", "delete", GID, "--yes").stderr == "im: there is no group 'team'\n"

    def test_without_a_terminal_it_needs_yes(self, chat: Chat) -> None:
        result = im("group", "delete", GID)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "--yes" in result.stderr
        assert chat.group(GID).members == 3

    def test_a_one_to_one_chat_is_named_as_the_list_names_it(self, chat: Chat) -> None:
        chat.send_direct("bob", "hi", sender_uid="ann")
        result = im("group", "delete", "dm:bob", "--yes")
        assert (result.exit_code, "its gid is in `im group list`" in result.stderr) == (1, True)
        assert json.loads(im("group", "delete", gid_of("ann", "bob"), "--yes", "--json").stdout)["messages"] == 1
