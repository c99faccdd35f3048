"""Redis at its `maxmemory`: sends are refused whole, everything else goes on, and room can be made again."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from imcore.admin import retention
from imcore.admin.stats import stats
from imcore.chat import Chat
from imcore.cli.app import app
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import RedisFull
from imcore.importer.importer import import_events
from imcore.model.values import Draft, Message, Receipt
from imcore.operations import creation
from imcore.settings import Settings
from imcore.streams import dead_letters
from imcore.streams.calls.message_calls import send
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer, require_server, start_valkey
from tests.helpers.workers import run_bursts, start_worker

GID = "team"
NO_LIMIT = 0
BELOW_ANY_USE = 1
POLICY = ("--maxmemory-policy", "noeviction")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of our own: the limit is everybody's."""
    require_server()
    server = start_valkey(tmp_path_factory.mktemp("full"), *POLICY, appendonly=False)
    yield server
    server.stop()


@pytest.fixture
def admin(server: RunningServer) -> Iterator["redis.Redis"]:
    with closing(redis.Redis.from_url(server.url)) as client:
        client.config_set("maxmemory", NO_LIMIT)
        client.flushall()
        yield client
        client.config_set("maxmemory", NO_LIMIT)


@pytest.fixture
def redis_url(server: RunningServer) -> str:
    return server.url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, partitions=2, block_ms=20, max_deliveries=1)


@pytest.fixture
def chat(admin: "redis.Redis", chat: Chat) -> Chat:
    """A group whose messages are not in SQL; then no memory is left."""
    chat.create_group(GID, ["ann", "bob", "cy", "dan"])
    chat.send_direct("bob", "hello", sender_uid="ann")
    for number in range(20):
        chat.send(GID, f"message {number}", sender_uid=("ann", "bob")[number % 2], client_msgid=f"c{number}")
    admin.config_set("maxmemory", BELOW_ANY_USE)
    return chat


def dump(admin: "redis.Redis") -> dict[Any, Any]:
    return {key: admin.dump(key) for key in admin.keys("*")}


class TestRefused:
    def test_calls_that_need_room_are_refused_and_change_nothing(self, chat: Chat, admin: "redis.Redis") -> None:
        before = dump(admin)

        for attempt in (
            lambda: chat.send(GID, "one too many", sender_uid="ann"),
            lambda: chat.send(GID, "one too many", sender_uid="cy", client_msgid="c"),
            lambda: chat.send_direct("bob", "one too many", sender_uid="ann"),
            lambda: chat.send_direct("cy", "to somebody new", sender_uid="ann"),
            lambda: chat.create_group("other", ["ann"]),
            lambda: chat.create_group(GID, ["ann", "bob", "cy", "dan"]),
            lambda: chat.add_members(GID, ["eve"]),
        ):
            with pytest.raises(RedisFull, match=r"no memory left \(maxmemory\): nothing was stored") as refused:
                attempt()
            assert "\n" not in str(refused.value)

        assert dump(admin) == before

    def test_no_call_of_a_batch_is_half_done(self, chat: Chat, admin: "redis.Redis") -> None:
        before = dump(admin)
        space = chat.system.client.space
        batch = [send(space, GID, [Draft("ann", f"{number}")] * 10, 1000) for number in range(10)]

        answers = chat.system.client.call_each(batch)

        assert [type(answer) for answer in answers] == [RedisFull] * 10
        assert dump(admin) == before

    def test_a_refused_command_prints_one_line(self, chat: Chat, settings: Settings) -> None:
        where = ["--redis-url", settings.redis_url, "--data-dir", str(settings.data_dir)]

        result = CliRunner().invoke(app, ["send", GID, "hi", "--from", "ann", *where])

        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"im: {chat.system.client.address} has no memory left (maxmemory): nothing was stored\n"

    def test_an_import_stops_and_continues_later(self, chat: Chat, admin: "redis.Redis") -> None:
        event = b'{"type": "message", "gid": "team", "uid": "cy", "content": "later", "client_msgid": "i1"}'

        def run() -> int:
            ignored: dict[str, Any] = {"on_error": lambda *_: None, "on_progress": lambda _: None}
            return import_events(chat, [event], **ignored).messages

        with pytest.raises(RedisFull):
            run()
        admin.config_set("maxmemory", NO_LIMIT)
        assert run() == 1
        assert chat.group(GID).messages == 21

    def test_an_outbox_waits(self, chat: Chat, admin: "redis.Redis", tmp_path: Path) -> None:
        # Given a message in the outbox of a client
        with LocalDatabase(path_of(tmp_path, "ann"), "ann") as local:
            client = Device(chat, "ann", local)
            client.queue("sooner or later", gid=GID)
            assert isinstance(client.flush().stopped_by, RedisFull)
            assert [line.state for line in local.log()] == ["waiting"]

            # When there is room again
            admin.config_set("maxmemory", NO_LIMIT)

            # Then it goes out, once
            assert [message.content for message in client.flush().sent] == ["sooner or later"]
            assert client.flush().sent == []
        assert chat.group(GID).messages == 21


class TestGoesOn:
    def test_pulls_acks_and_all_questions(self, chat: Chat) -> None:
        messages = chat.pull("cy", GID)
        assert len(messages) == 20
        assert chat.ack("cy", GID, messages[9].msgid).advanced
        assert chat.ack("bob", GID).advanced
        assert {each.gid: each.unread for each in chat.unread("cy")} == {GID: 10}
        assert [(each.read, each.unread) for each in chat.status(GID, limit=2)] == [(1, 2), (0, 3)]
        assert [reader.uid for reader in chat.message_status(GID, messages[0].msgid).read_by] == ["bob", "cy"]
        assert stats(chat.system).messages == 21

    def test_leaves_and_recalls(self, chat: Chat) -> None:
        [first, *_] = chat.pull("cy", GID)
        chat.recall(GID, first.msgid, by="ann")
        assert chat.remove_members(GID, ["dan", "bob"]).members == 2
        assert chat.pull("cy", GID)[0].recalled
        assert chat.unread("cy")[0].unread == 19

    def test_sessions_receipts_and_pushes(self, chat: Chat, settings: Settings, tmp_path: Path) -> None:
        # Given a live session that begins now
        with LocalDatabase(path_of(tmp_path, "ann"), "ann") as local, Chat.connect(settings=settings) as anns:
            heard: list[object] = []
            live = Device(anns, "ann", local).live(lambda: any(isinstance(each, Receipt) for each in heard))

            # When somebody reads her messages, and the worker publishes the receipts
            chat.ack("cy", GID)
            with start_worker(settings, "receipts") as receipts:
                heard.extend(live)
                assert receipts.end() == 0

        # Then she has received and confirmed all after her own first message
        assert sum(isinstance(each, Message) for each in heard) == 19
        assert chat.receipts("ann") == []
        session = chat.begin_session("ann")
        chat.heartbeat("ann", session)
        chat.end_session("ann", session)

    def test_workers_store_all_and_put_poison_aside(self, chat: Chat, settings: Settings, admin: "redis.Redis") -> None:
        # Given poison among the rest
        admin.config_set("maxmemory", NO_LIMIT)
        admin.xadd(chat.system.client.space.group(GID).journal, {"kind": "nonsense"})
        admin.config_set("maxmemory", BELOW_ANY_USE)
        chat.ack("bob", GID)

        # When the workers run
        run_bursts(settings, "persist", "receipts")

        # Then all is stored and published, and the dead letters can be dropped
        assert len(chat.system.database.messages_after(GID, 0)) == 20
        assert chat.receipts("ann")
        assert {each.backlog for each in stats(chat.system).workers} == {0}
        first, second = dead_letters.list_dead(chat.system.client)
        dead_letters.requeue(chat.system.client, first.id)
        dead_letters.drop(chat.system.client, second.id)


def used_memory(admin: "redis.Redis") -> int:
    used: int = admin.info("memory")["used_memory"]
    return used


def fill_with_what_is_stored(chat: Chat, settings: Settings, admin: "redis.Redis") -> None:
    admin.config_set("maxmemory", NO_LIMIT)
    empty = used_memory(admin)
    for _ in range(20):
        chat.system.client.call(send(chat.system.client.space, GID, [Draft("ann", "x" * 10_000)] * 50, 1000))
    run_bursts(settings, "persist")
    admin.config_set("maxmemory", (empty + used_memory(admin)) // 2)


class TestRoom:
    """The server looks at its memory when a function begins, and not again: a function is done whole, or not begun."""

    def test_a_step_that_began_in_time_is_done_whole(self, chat: Chat, admin: "redis.Redis") -> None:
        # Given room for half of what is to be made, by what as much has taken just before
        uids = [f"user{number}".ljust(100, "x") for number in range(2 * creation.STEP)]
        admin.config_set("maxmemory", NO_LIMIT)
        before = used_memory(admin)
        chat.add_members(GID, uids[: creation.STEP])
        after = used_memory(admin)
        limit = after + (after - before) // 2
        admin.config_set("maxmemory", limit)

        # When it is made
        assert chat.add_members(GID, uids[creation.STEP :]).members == 4 + len(uids)

        # Then the server went over its limit in the middle, and all is there, and in the journal
        assert used_memory(admin) > limit
        assert {member.uid for member in chat.members(GID)} >= set(uids)
        entries: Any = admin.xrange(chat.system.client.space.group(GID).journal)
        assert {fields[b"uid"].decode() for _, fields in entries if fields[b"kind"] == b"join"} >= set(uids)
        with pytest.raises(RedisFull):
            chat.send(GID, "hi", sender_uid="ann")

    def test_a_group_for_which_there_is_no_room_is_not_there_by_half(self, chat: Chat, admin: "redis.Redis") -> None:
        # Given room for some of the steps in which a large group is created
        uids = [f"user{number}" for number in range(10_000)]
        admin.config_set("maxmemory", used_memory(admin) + 500_000)

        # When it is created
        with pytest.raises(RedisFull):
            chat.create_group("crowd", uids)

        # Then nobody sees any of it, and once there is room it can be repeated
        assert "crowd" not in {group.gid for group in chat.groups()}
        assert chat.groups_of("user0") == []
        admin.config_set("maxmemory", NO_LIMIT)
        assert chat.create_group("crowd", uids).members == 10_000
        assert len(list(chat.members("crowd"))) == 10_000

    def test_the_error_says_how_many_of_many_new_members_are_in(self, chat: Chat, admin: "redis.Redis") -> None:
        # Given room for some steps
        uids = [f"user{number}" for number in range(10_000)]
        admin.config_set("maxmemory", used_memory(admin) + 500_000)

        # When more are added
        with pytest.raises(RedisFull) as refused:
            chat.add_members(GID, uids)

        # Then those who are in are whole members, and it may be repeated
        counts = re.search(r"nothing was stored of (\d+) members; (\d+) are in", str(refused.value))
        assert counts
        assert chat.group(GID).members == 4 + int(counts[2]) < 10_004
        assert int(counts[1]) + int(counts[2]) == 10_000
        admin.config_set("maxmemory", NO_LIMIT)
        assert chat.add_members(GID, uids).members == 10_004

    def test_one_that_is_refused_is_not_even_begun(self, chat: Chat, admin: "redis.Redis") -> None:
        admin.config_resetstat()

        with pytest.raises(RedisFull):
            chat.send(GID, "one too many", sender_uid="cy", client_msgid="c")

        commands: dict[str, Any] = admin.info("commandstats")
        assert commands["cmdstat_fcall"]["rejected_calls"] == 1
        assert commands["cmdstat_fcall"]["failed_calls"] == 0
        assert set(commands) <= {"cmdstat_fcall", "cmdstat_config|resetstat", "cmdstat_info"}

    def test_a_trim_makes_room(self, chat: Chat, settings: Settings, admin: "redis.Redis") -> None:
        # Given a server that is full of stored messages
        fill_with_what_is_stored(chat, settings, admin)
        with pytest.raises(RedisFull):
            chat.send(GID, "too much", sender_uid="ann")

        # When old messages go
        assert retention.trim(chat.system, keep_messages=10).entries > 900

        # Then there is room again, and nothing is missing
        sent = chat.send(GID, "at last", sender_uid="ann")
        assert (sent.seq, len(chat.pull("cy", GID))) == (1021, 1021)

    def test_the_worker_for_jobs_makes_room_by_itself(
        self, chat: Chat, settings: Settings, admin: "redis.Redis"
    ) -> None:
        # Given a server that is full of stored messages, so full that no job can be enqueued
        fill_with_what_is_stored(chat, settings, admin)

        # When a worker comes that looks after that
        with start_worker(settings, "jobs", keep_messages=10) as jobs:
            wait_until(lambda: "started" in jobs.log, timeout_s=30)

            # Then it has made room before it began, and is one that can be ended
            assert jobs.end() == 0
        assert jobs.log.index("trimmed 10") < jobs.log.index("started")
        assert "Traceback" not in jobs.log
        assert chat.send(GID, "at last", sender_uid="ann").seq == 1021


def test_a_benchmark_says_that_there_is_no_memory(admin: "redis.Redis", settings: Settings) -> None:
    admin.function_flush()
    admin.config_set("maxmemory", BELOW_ANY_USE)

    result = CliRunner().invoke(app, ["bench", "tally", "--quick", "--redis-url", settings.redis_url])

    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "has no memory left (maxmemory)" in line
