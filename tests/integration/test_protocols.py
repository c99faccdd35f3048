"""Whichever protocol the URL asks for, everything works: answers have one shape in the program."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from imcore.admin.retention import trim
from imcore.admin.stats import online_uids, stats
from imcore.chat import Chat
from imcore.errors import GroupExists
from imcore.repair.check import check
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.streams import dead_letters, transport
from imcore.streams.client import RedisClient, open_client
from imcore.streams.wire import streams
from tests.helpers.deadline import wait_until
from tests.helpers.gateways import Audience, nodes_of
from tests.helpers.processes import WorkerProcess

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(params=["", "protocol=2", "protocol=3"], ids=lambda option: option or "as the driver chooses")
def option(request: pytest.FixtureRequest) -> str:
    query: str = request.param
    return query


@pytest.fixture(params=["valkey", "cluster"])
def settings(request: pytest.FixtureRequest, option: str, tmp_path: Path) -> Settings:
    url = request.getfixturevalue(request.param)
    return Settings.from_env({}, redis_url=f"{url}?{option}".rstrip("?"), data_dir=str(tmp_path))


def urls(settings: Settings) -> dict[str, str]:
    return {name: getattr(settings, name) for name in ("redis_url", "database_url")}


def test_workers_wait_for_entries_and_handle_them(settings: Settings, chat: Chat) -> None:
    # Given workers that wait, and a live session
    folder = settings.data_dir / "w"
    with (
        WorkerProcess(folder, "persist", **urls(settings)) as persist,
        WorkerProcess(folder, "receipts", **urls(settings)) as receipts,
    ):
        for worker in (persist, receipts):
            worker.wait_for("working as")
        chat.create_group("team", ["ann", "bob"])
        with chat.gateway(ack_every=1) as gateway:
            audience = Audience(gateway)
            ann, bob = gateway.open("ann"), gateway.open("bob")
            audience.settled()
            # When
            sent = chat.send("team", "hi", sender_uid="ann")
            # Then it is received, acked, stored, and its receipt published
            audience.until(lambda: audience.heard(bob) == ["hi"])
            audience.until(lambda: [(each.msgid, each.read) for each in audience.receipts[ann]] == [(sent.msgid, 1)])
            assert sorted(online_uids(chat.system)) == ["ann", "bob"]
        wait_until(lambda: len(chat.system.database.messages_after("team", 0)) == 1, timeout_s=30)
        wait_until(lambda: {worker.backlog for worker in stats(chat.system).workers} == {0}, timeout_s=30)
        assert [worker.end() for worker in (persist, receipts)] == [0, 0]


def test_groups_of_many(settings: Settings, chat: Chat) -> None:
    # Given a group that is created in steps
    uids = [f"user{number:03}" for number in range(250)]
    for _ in range(2):
        assert chat.create_group("crowd", uids).members == 250
    with pytest.raises(GroupExists):
        chat.create_group("crowd", [*uids[1:], "stranger"])
    assert chat.groups_of(uids[0]) == ["crowd"]
    # Then all can be asked about it, and workers store it
    sent = chat.send("crowd", "hi", sender_uid=uids[0])
    chat.ack(uids[1], "crowd", sent.msgid)
    status = chat.message_status("crowd", sent.msgid)
    assert ([reader.uid for reader in status.read_by], len(status.unread_by)) == ([uids[1]], 248)
    with WorkerProcess(settings.data_dir / "w", "persist", "--burst", **urls(settings)) as worker:
        assert worker.wait() == 0, worker.log
    assert list(check(chat.system)) == []
    assert stats(chat.system).silent == ()


def test_whatever_an_operator_does(settings: Settings, chat: Chat) -> None:
    # Given some groups that are stored, and a dead letter
    for gid in ("team", "home"):
        chat.create_group(gid, ["ann", "bob"])
        sent = chat.send(gid, "hi", sender_uid="ann", client_msgid="1")
        chat.ack("bob", gid, sent.msgid)
    with WorkerProcess(settings.data_dir / "w", "persist", "--burst", **urls(settings)) as worker:
        assert worker.wait() == 0, worker.log
    dead = chat.system.client.space.dead_letters(0)
    chat.system.client.execute_once(
        "XADD", dead, "*", "dead_worker", "persist", "dead_reason", "no", "dead_entry", "1-1"
    )
    # Then it is shown, counted, compared, trimmed and rebuilt alike
    counts = stats(chat.system)
    assert (counts.groups, counts.members, counts.messages, counts.dead_letters) == (2, 4, 2, 1)
    assert [(each.worker, each.backlog, each.pending) for each in counts.workers] == [("persist", 0, 0)]
    assert [member.uid for member in chat.members("team")] == ["ann", "bob"]
    assert list(check(chat.system)) == []
    [letter] = dead_letters.list_dead(chat.system.client)
    dead_letters.drop(chat.system.client, letter.id)
    assert trim(chat.system, keep_messages=0).entries == 2
    status = chat.message_status("team", sent.msgid) if sent.gid == "team" else chat.message_status("home", sent.msgid)
    assert [reader.uid for reader in status.read_by] == ["bob"]
    assert rebuild(chat.system, yes=True, adopt=True).groups in {0, 2}
    assert list(check(chat.system)) == []


@pytest.mark.parametrize("option", ["protocol=2", "protocol=3"])
def test_jobs(valkey: str, option: str, tmp_path: Path) -> None:
    settings = Settings.from_env({}, redis_url=f"{valkey}?{option}", data_dir=str(tmp_path))
    with Chat.connect(settings=settings) as chat, WorkerProcess(tmp_path / "w", "jobs", **urls(settings)) as worker:
        worker.wait_for("trimmed")
        assert stats(chat.system).jobs is not None
        assert worker.end() == 0, worker.log


@pytest.mark.parametrize("server", ["valkey", "cluster"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_the_protocol_is_the_one_that_is_asked_for(request: pytest.FixtureRequest, server: str, protocol: int) -> None:
    with closing(RedisClient(open_client(f"{request.getfixturevalue(server)}?protocol={protocol}"))) as client:
        client.query_many([("EXISTS", "im:config")], any_library=True)
        nodes = {node.client_id(): node for node in nodes_of(client.driver)}
        spoken = {each["resp"] for me, node in nodes.items() for each in node.client_list() if int(each["id"]) == me}
    assert spoken == {str(protocol)}


@pytest.mark.parametrize(
    "answer", [[[b"s", [(b"1-1", {b"a": b"b"})]]], {b"s": [[(b"1-1", {b"a": b"b"})]]}], ids=["RESP2", "RESP3"]
)
def test_streams_have_one_shape(answer: object) -> None:
    assert [(name, entries) for name, entries in streams(answer)] == [(b"s", [(b"1-1", {b"a": b"b"})])]
    assert streams(None) == []
    assert streams({}) == []


def test_no_sign_of_life_is_asked_for_among_commands_under_way(
    valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a driver that asks for one before nearly every command, and commands that are sent in pieces
    monkeypatch.setattr(transport, "PIECE", 2)
    settings = replace(Settings.from_env({}, data_dir=str(tmp_path)), redis_url=f"{valkey}?health_check_interval=1")
    with Chat.connect(settings=settings) as chat:
        pool = chat.system.client.driver.connection_pool  # type: ignore[union-attr]
        connection = pool.get_connection()
        pool.release(connection)
        sending = type(connection).send_packed_command

        def due_again(self: "redis.Connection", *args: object, **options: object) -> None:
            self.next_health_check = -1  # type: ignore[attr-defined]
            sending(self, *args, **options)

        monkeypatch.setattr(type(connection), "send_packed_command", due_again)
        # Then each answer is that of its command
        answers = chat.system.client.query_many([("ECHO", str(number)) for number in range(20)], any_library=True)
        assert answers == [str(number).encode() for number in range(20)]
