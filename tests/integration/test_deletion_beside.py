"""Deletions beside checks, repairs, rebuilds, trims and imports, and a Redis that comes back as it was before them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from imcore import Chat
from imcore.admin import retention
from imcore.errors import GroupUnderWay, TryAgain, UnknownGroup
from imcore.importer.importer import import_events
from imcore.operations import creation, deletion
from imcore.repair import compare, rewriting
from imcore.repair.apply import mend
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.streams import dead_letters
from tests.helpers.deletions import GID, UIDS, assert_gone, begin_and_die, die, talk
from tests.helpers.dying import bury_the_dead
from tests.helpers.rows import stored
from tests.helpers.snapshot import Snapshot
from tests.helpers.workers import persist, run_workers


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url, block_ms=1, receipt_window_ms=0, partitions=2, lease_ms=200)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def chat(chat: Chat) -> Chat:
    """A group of three, and another one, where a worker has been."""
    chat.system.database.upgrade()
    for gid in (GID, "other"):
        chat.create_group(gid, UIDS)
    run_workers(chat)
    return chat


class TestBeside:
    @contextmanager
    def each_step(self, what: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """Do something after each step of a deletion in the block."""
        monkeypatch.setattr(deletion, "ROWS", 10)
        monkeypatch.setattr(deletion, "SPANS", 2)
        steps: list[int] = []
        delete = deletion.delete_group

        def on_progress(done: int) -> None:
            steps.append(done)
            what()

        with monkeypatch.context() as patch:
            patch.setattr(deletion, "delete_group", lambda gid: delete(gid, on_progress=on_progress))
            yield steps

    def test_check_finds_nothing_meanwhile(self, chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        talk(chat)
        run_workers(chat)
        with self.each_step(lambda: self.sound(other), monkeypatch) as steps:
            chat.delete_group(GID)
        assert len(steps) > 6
        assert_gone(chat)

    def sound(self, chat: Chat) -> None:
        assert list(check(chat.system)) == []
        assert list(check(chat.system, repair=True)) == []

    def test_a_check_that_begins_before_it(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        talk(chat)
        run_workers(chat)
        deleted: list[object] = []
        look = compare._look

        def look_and_delete(*args: Any) -> Any:
            seen = look(*args)
            if not deleted:
                deleted.append(chat.delete_group(GID))
                return {gid: [compare.Difference("text", "a", "b")] for gid in seen if gid == GID} | {
                    gid: each for gid, each in seen.items() if gid != GID
                }
            return seen

        monkeypatch.setattr(compare, "_look", look_and_delete)
        assert list(check(chat.system)) == []
        assert deleted

    def test_a_rebuild_in_between(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a group whose deletion has begun
        talk(chat)
        run_workers(chat)
        begin_and_die(chat)

        # When Redis is rebuilt, which has its data
        rebuild(chat.system, yes=True)
        with pytest.raises(UnknownGroup):
            chat.group(GID)
        persist(chat)
        assert_gone(chat)

    @pytest.mark.parametrize("rows", [10**6, 3])
    def test_a_rebuild_after_redis_was_lost(self, chat: Chat, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a deletion that died over the rows in SQL
        monkeypatch.setattr(deletion, "ROWS", rows)
        talk(chat)
        run_workers(chat)
        with monkeypatch.context() as patch:
            patch.setattr("imcore.streams.calls.deletion_calls.spans", die)
            patch.setattr("imcore.streams.calls.repair_calls.release", die)
            if rows == 3:
                patch.setattr(deletion, "_delete_rows", self.some_rows)
            with pytest.raises(ZeroDivisionError):
                chat.delete_group(GID)

        # When Redis is lost, and rebuilt
        chat.system.client.driver.flushdb()
        assert rebuild(chat.system).groups == 1

        # Then the group is not back, and its gid is free
        assert_gone(chat)
        assert chat.create_group(GID, ["ann"]).messages == 0
        run_workers(chat)
        assert list(check(chat.system)) == []

    @staticmethod
    def some_rows(lock: Any, begun: Any, _: object) -> Any:
        yield from deletion.BeginDeletion(lock.k.gid, begun.entry)
        yield from deletion.DeleteRows(lock.k.gid, begun.entry, 3)
        raise ZeroDivisionError

    @pytest.mark.parametrize("how", ["worker", "check"])
    @pytest.mark.parametrize("is_anew", [False, True])
    def test_a_redis_from_before_it(self, chat: Chat, how: str, is_anew: bool) -> None:
        # Given a Redis that comes back as it was before the deletion
        talk(chat)
        run_workers(chat)
        before = Snapshot.of(chat.system.client.driver)
        chat.delete_group(GID)
        if is_anew:
            chat.create_group(GID, ["ann", "eve"])
            chat.send(GID, "anew", sender_uid="eve")
        chat.send("other", "hi", sender_uid="ann")
        run_workers(chat)
        before.restore(chat.system.client.driver)

        # When a worker looks, or an operator
        if how == "check":
            for _ in range(2):
                list(check(chat.system, repair=True))
        else:
            bury_the_dead(chat)
            persist(chat)

        # Then there is no such group, or the new one
        if is_anew:
            assert [member.uid for member in chat.members(GID)] == ["ann", "eve"]
            assert [tally.message.content for tally in chat.status(GID)] == ["anew"]
        else:
            assert GID not in [group.gid for group in chat.groups()]
            assert GID not in stored(chat.system.database).gids
        assert list(check(chat.system)) == []

    def test_a_repair_of_it_does_nothing(self, chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        talk(chat)
        run_workers(chat)
        with self.each_step(lambda: mend(other.system, GID), monkeypatch):
            chat.delete_group(GID)
        assert_gone(chat)

    def test_a_rewrite_of_it_ends(self, chat: Chat, other: Chat) -> None:
        talk(chat)
        with pytest.raises((TryAgain, UnknownGroup)):
            rewriting.rewrite(chat.system.client, GID, on_step=lambda: _once(other, GID))
        run_workers(chat)
        assert_gone(chat)

    def test_trims_sends_and_acks(self, chat: Chat, other: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        talk(chat)
        run_workers(chat)

        def everything() -> None:
            retention.trim(other.system, keep_messages=0)
            for refused in (
                lambda: other.send(GID, "hi", sender_uid="ann"),
                lambda: other.ack("ann", GID),
                lambda: other.add_members(GID, ["fay"]),
                lambda: other.create_group(GID, ["fay"]),
            ):
                with pytest.raises((UnknownGroup, GroupUnderWay)):
                    refused()
            other.receipts("ann")
            run_workers(other)

        monkeypatch.setattr(creation, "_PATIENCE_S", 0.0)
        with self.each_step(everything, monkeypatch):
            chat.delete_group(GID)
        assert_gone(chat)

    def test_an_import_makes_it_anew(self, chat: Chat) -> None:
        # Given a file that speaks in the group, which is deleted in the midst
        line = b'{"type": "message", "time": "2026-01-01T00:00:00Z", "gid": "team", "uid": "ann", "content": "x", '
        lines = [line + b'"client_msgid": "%d"}' % number for number in range(60)]

        def feed() -> Iterator[bytes]:
            for number, each in enumerate(lines):
                if number == 30:
                    chat.delete_group(GID)
                yield each

        summary = import_events(chat, feed(), on_error=lambda *_: pytest.fail("no error"), on_progress=lambda _: None)
        assert summary.errors == 0
        run_workers(chat)
        assert list(check(chat.system)) == []
        assert list(dead_letters.list_dead(chat.system.client)) == []


def _once(chat: Chat, gid: str) -> None:
    if gid in [group.gid for group in chat.groups()]:
        chat.delete_group(gid)
