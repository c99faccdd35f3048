"""Groups too large for one call: they are changed in steps, and nobody sees a part."""

import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore import Chat, Draft
from imcore.admin import retention
from imcore.errors import GroupExists
from imcore.operations import creation, queries, tallies
from imcore.repair import check, watch
from imcore.settings import Settings
from imcore.streams.calls import creation_calls
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient
from imcore.system import System
from imcore.util.backoff import ThrottledLog
from tests.helpers.deadline import wait_until
from tests.helpers.key_counts import kind_of
from tests.helpers.processes import PythonProcess
from tests.helpers.workers import run_workers

GID = "crowd"
UIDS = [f"user{number:04}" for number in range(600)]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=1, receipt_window_ms=0, partitions=2)


@pytest.fixture
def chat(chat: Chat) -> Chat:
    chat.system.database.upgrade()
    return chat


class Watched(RedisClient):
    """A client that names each call before it sends it."""

    def call_each(self, batch: Sequence[Call[Any]], **options: Any) -> list[Any]:
        for call in batch:
            self.on_call(call)
        return super().call_each(batch, **options)

    def on_call(self, call: Call[Any]) -> None:
        """Do nothing."""


class TestNames:
    @pytest.mark.parametrize("seed", range(4))
    def test_each_recipient_is_read_or_unread_while_members_read_join_and_leave(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch, seed: int
    ) -> None:
        # Given a message in a large group, which some have read
        chance = random.Random(seed)
        monkeypatch.setattr(tallies, "NAMES", 20)
        chat.create_group(GID, UIDS)
        chat.remove_members(GID, UIDS[:3])
        sent = chat.send(GID, "hi", sender_uid=UIDS[-1])
        recipients = set(UIDS[3:-1])
        early = set(chance.sample(sorted(recipients), 100))
        chat.ack_many(GID, [(uid, sent.msgid) for uid in early])
        late: set[str] = set()
        other = Chat(System(RedisClient(chat.system.client.driver, partitions=2), None, chat.system.settings))

        def meanwhile(call: Call[Any]) -> None:
            """Between two pages some read it, some leave, some of them come back, and strangers join."""
            if call.function == "im_readers":
                readers = chance.sample(sorted(recipients), 10)
                acked = other.ack_many(GID, [(uid, sent.msgid) for uid in readers])
                late.update(uid for uid, ack in zip(readers, acked, strict=True) if not isinstance(ack, Exception))
                gone = chance.sample(sorted(recipients), 5)
                other.remove_members(GID, gone)
                other.add_members(GID, [*gone[:2], f"stranger{chance.random()}"])
                if chance.random() < 0.3:
                    other.send(GID, "another", sender_uid=UIDS[-1])

        # When it is asked who has read it, page by page
        watched = Watched(chat.system.client.driver, partitions=2)
        monkeypatch.setattr(watched, "on_call", meanwhile)
        status = Chat(System(watched, None, chat.system.settings)).message_status(GID, sent.msgid)

        # Then each recipient is named once; who had read it before has, and who never did has not
        read, unread = {reader.uid for reader in status.read_by}, set(status.unread_by)
        assert Counter([*(reader.uid for reader in status.read_by), *status.unread_by]).most_common(1)[0][1] == 1
        assert read | unread == recipients
        assert early <= read <= early | late

    def test_a_page_of_members_has_about_its_limit(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        chat.create_group(GID, UIDS)
        sent = chat.send(GID, "hi", sender_uid=UIDS[0])
        watched = Watched(chat.system.client.driver, partitions=2)
        calls: list[Call[Any]] = []
        monkeypatch.setattr(watched, "on_call", calls.append)
        monkeypatch.setattr(tallies, "NAMES", 100)
        status = Chat(System(watched, None, chat.system.settings)).message_status(GID, sent.msgid)
        assert len(status.unread_by) == len(UIDS) - 1
        assert sum(call.function == "im_readers" for call in calls) >= 3


class TestStatus:
    def test_long_texts_come_in_pages(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given texts so long that a page holds a few
        monkeypatch.setattr(queries, "PAGE_BYTES", 25_000)
        chat.create_group("g", ["ann", "bob"])
        sizes = [10_000, 1, 30_000, 10_000, 10_000, 40_000, 40_000, 1, 1, 10_000] * 3
        sent = [chat.send("g", "x" * size, sender_uid="ann") for size in sizes]
        # Then all of them come, in order, however many are asked for
        for limit in (0, 1, 2, 7, 29, 30, 31):
            messages = [tally.message for tally in chat.status("g", limit=limit)]
            assert messages == (sent[-limit:] if limit else sent)
        # And also where the oldest are in SQL only
        run_workers(chat)
        retention.trim(chat.system, keep_messages=11)
        for limit in (0, 5, 11, 12, 30):
            messages = [tally.message for tally in chat.status("g", limit=limit)]
            assert messages == (sent[-limit:] if limit else sent)


class TestTrim:
    def test_a_group_created_in_steps_is_as_one_created_at_once(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retention, "_TRIM_AT_ONCE", 7)
        chat.create_group("g", ["ann", "bob"])
        sent = chat.send_many("g", [Draft("ann", f"message {number}") for number in range(50)])
        run_workers(chat)
        assert retention.trim(chat.system, keep_messages=3).entries == 47
        assert chat.pull("bob", "g") == sent
        assert len(chat.system.client.query("XRANGE", chat.system.client.space.group("g").stream, "-", "+")) == 3


class TestCreation:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_creation_killed_at_any_moment_leaves_a_whole_group_or_no_group(
        self, chat: Chat, settings: Settings, seed: int, tmp_path: Path
    ) -> None:
        chance = random.Random(seed)
        chat.create_group("small", ["ann"])
        members, killed = 3000, 0
        uids = [f"user{number:04}" for number in range(members)]
        for number in range(4):
            # Given a process that is killed as it creates a group
            gid = f"crowd{number}"
            at = chance.randrange(members)
            creating = PythonProcess(
                tmp_path, "imcore.cli.main", "group", "create", gid, *uids, redis_url=settings.redis_url, partitions=2
            )
            acked = chat.system.client.space.group(gid).acked
            with creating:
                wait_until(lambda key=acked, at=at, process=creating: _has(chat, key, at) or not process.runs)
                killed += creating.end(signal.SIGKILL) == -signal.SIGKILL
            # Then nobody sees any of it, or all of it
            members_of = {group.gid: group.members for group in chat.groups()}
            assert members_of.get(gid, members) == members
            assert (gid in chat.groups_of("user0000")) == (gid in members_of)
            # And repeated, it is complete
            assert chat.create_group(gid, uids).members == members
            assert [member.uid for member in chat.members(gid)] == uids
        assert killed
        run_workers(chat)
        assert list(check.check(chat.system)) == []

    def test_remains_of_a_creation_that_nobody_repeats_are_removed(self, chat: Chat, settings: Settings) -> None:
        # Given creations that are given up, one before the group is there and one after
        space, token = chat.system.client.space, creation._token(UIDS)
        for gid in ("half", "untold"):
            chat.system.client.call(creation_calls.begin(space, gid, token))
            for start in range(0, len(UIDS) if gid == "untold" else 300, creation.STEP):
                chat.system.client.call(creation_calls.add(space, gid, token, UIDS[start : start + creation.STEP]))
        chat.system.client.call(creation_calls.end(space, "untold", token, len(UIDS)))
        for key in (space.creating(space.partition_of("half")), space.unnotified(space.partition_of("untold"))):
            for gid, _ in chat.system.client.driver.hgetall(key).items():
                chat.system.client.driver.hset(key, gid, f"{token} 1 1")
        # When a worker looks
        with chat.gateway() as gateway:
            session = gateway.open(UIDS[0])
            gateway.poll(0)
            run_workers(chat)
            # Then one is gone, and all members of the other are notified
            assert [group.gid for group in chat.groups()] == ["untold"]
            assert chat.groups_of(UIDS[0]) == ["untold"]
            sent = chat.send("untold", "hi", sender_uid=UIDS[1])
            wait_until(lambda: [e for e in gateway.poll(0.05) if getattr(e, "message", None) == sent])
            assert session.is_synced
        run_workers(chat)
        assert list(check.check(chat.system)) == []
        kinds = Counter(kind_of(key.decode()) for key in chat.system.client.driver.keys("im:*"))
        assert not {"creating", "unnotified"} & kinds.keys()

    def test_a_creation_with_other_members_is_refused_as_another_group(self, chat: Chat) -> None:
        chat.create_group(GID, UIDS)
        for others in (UIDS[:-1], [*UIDS[:-1], "stranger"], [*UIDS, "stranger"], UIDS[:3]):
            with pytest.raises(GroupExists):
                chat.create_group(GID, others)
        assert chat.create_group(GID, UIDS[::-1]).members == len(UIDS)
        watch.end_abandoned(chat.system.client, ThrottledLog(time.monotonic))
        assert chat.group(GID).members == len(UIDS)


def _has(chat: Chat, key: str, count: int) -> bool:
    return int(chat.system.client.driver.zcard(key)) >= count
