"""The rules that `im acl` prints, on a real server: each role can do all of its work, and nothing else."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError
from rq import Queue
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from imcore.admin import append_only, retention
from imcore.admin.acl import GATEWAY, PASSWORD, READER, ROLES, WORKER, Role
from imcore.admin.health import health
from imcore.admin.stats import online_uids, stats
from imcore.chat import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import ConfigurationError, RedisRefuses, RedisUnavailable
from imcore.gateway.gateway import Gateway
from imcore.importer.importer import import_events
from imcore.model.values import Receipt
from imcore.repair import check, rebuild
from imcore.settings import Settings
from imcore.streams import dead_letters
from imcore.streams.journal import Journal
from imcore.streams.keys import lease
from imcore.workers import jobs
from tests.helpers.deadline import wait_until
from tests.helpers.forbidden_commands import FORBIDDEN
from tests.helpers.key_counts import KINDS, kind_of
from tests.helpers.servers import RunningCluster, start_valkey
from tests.helpers.watched_commands import Watch
from tests.helpers.workers import run_bursts, start_worker

PASSPHRASE = "correct horse"
DATABASE_NUMBER = 1
"""Not database 0: to select another one needs a right, too."""


def with_password(role: Role) -> list[str]:
    """The command that makes the user, with the password filled in."""
    digest = hashlib.sha256(PASSPHRASE.encode()).hexdigest()
    return role.set_user().replace(PASSWORD, f"#{digest}").split()


@pytest.fixture
def admin(valkey: str) -> Iterator["redis.Redis"]:
    """A client that may do everything, on a server that has the users."""
    with redis.Redis.from_url(f"{valkey}?db={DATABASE_NUMBER}", decode_responses=True) as client:
        for role in ROLES.values():
            client.execute_command(*with_password(role))
        yield client
        for role in ROLES.values():
            client.acl_deluser(role.user)


@pytest.fixture
def redis_url(valkey: str) -> str:
    return f"{valkey}?db={DATABASE_NUMBER}"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, block_ms=20, max_deliveries=1)


def as_user(settings: Settings, role: Role) -> Settings:
    url = settings.redis_url.replace("unix://", f"unix://{role.user}:{PASSPHRASE}@")
    return replace(settings, redis_url=url, jobs_redis_url=url)


def connect(settings: Settings, role: Role) -> Chat:
    return Chat.connect(settings=as_user(settings, role))


def kinds_of_rights(role: Role) -> set[tuple[str, str]]:
    """The commands that a role may run on some kinds of keys only, with each of these; but for FCALL."""
    selectors = [rule.strip("()").split() for rule in role.rules if rule.startswith("(") and "im:{" in rule]
    return {
        (right[1:], kind_of(key.partition("~")[2].replace("?", "0")) or key)
        for words in selectors
        for right in words
        for key in words
        if right.startswith("+") and right != "+fcall" and "~" in key
    }


@pytest.fixture
def watch(admin: "redis.Redis") -> Watch:
    return Watch(admin)


def talk(chat: Chat) -> None:
    """Everything that users do, but for live sessions."""
    chat.create_group("team", ["ann", "bob", "cy"])
    chat.add_members("team", ["dan", "eve"])
    first = chat.send("team", "one", sender_uid="ann", client_msgid="c")
    others = [
        chat.send("team", f"message {number}", sender_uid=uid, client_msgid=f"c{number}")
        for number, uid in enumerate(["bob", "ann", "bob", "ann", "cy"])
    ]
    chat.ack("bob", "team", others[1].msgid)  # over the first of two that bob has sent himself
    chat.send("team", "between", sender_uid="bob")
    chat.ack("bob", "team")
    chat.ack("ann", "team", first.msgid)
    chat.delivered("dan", "team", first.msgid)
    chat.delivered("eve", "team", first.msgid)
    chat.ack("dan", "team", others[2].msgid)
    chat.mark_unread("bob", "team", others[0].msgid)
    chat.ack("eve", "team", others[2].msgid, private=True)
    chat.unmark("bob", "team")
    chat.send("team", "by another", sender_uid="cy")
    chat.send("team", "more", sender_uid="bob")
    chat.recall("team", first.msgid, by="ann")
    chat.ack("dan", "team", private=True)
    chat.mark_unread("bob", "team", others[0].msgid)
    chat.send("team", "past a mark", sender_uid="bob")
    chat.unmark("bob", "team")
    chat.mark_unread("bob", "team", others[-1].msgid)
    chat.delivered("eve", "team", first.msgid)
    for receipts in ("off", "on"):
        chat.set_user("dan", receipts=receipts)
    for policy in ("counts", "names"):
        chat.set_group("team", receipts=policy)
    chat.remove_members("team", ["eve", "bob"])
    sent = chat.send_direct("bob", "hello", sender_uid="ann")
    chat.ack("bob", sent.gid)
    import_events(
        chat,
        [b'{"type": "join", "gid": "other", "uid": "ann"}'],
        on_error=lambda *_: pytest.fail("no such error"),
        on_progress=lambda _: None,
    )


def look(chat: Chat) -> None:
    """All queries about the chat."""
    for group in chat.groups():
        assert list(chat.members(group.gid))
        for tally in chat.status(group.gid, limit=0):
            chat.message_status(group.gid, tally.message.msgid)
            chat.why(group.gid, tally.message.msgid, "eve")
        chat.group_policy(group.gid)
    for uid in ("ann", "bob", "cy", "dan"):
        chat.unread(uid)
        chat.inbox(uid)
        chat.user_policy(uid)
        chat.pull(uid)
        chat.receipts(uid)


def listen(chat: Chat, uid: str) -> None:
    """Take the events of a session until receipts come."""
    heard: list[object] = []
    with LocalDatabase(path_of(chat.system.settings.data_dir, uid), uid) as local:
        live = Device(chat, uid, local).live(lambda: any(isinstance(each, Receipt) for each in heard))
        heard.extend(live)
    session = chat.begin_session(uid)
    chat.heartbeat(uid, session)
    chat.end_session(uid, session)


def serve(chat: Chat) -> None:
    """Hold sessions over some heartbeats, and end one while the others stay."""
    with Gateway(chat.performer, replace(chat.system.settings, heartbeat_ms=20)) as gateway:
        one, other = gateway.open("ann"), gateway.open("cy")
        wait_until(lambda: gateway.poll(0.05) == [] and one.is_synced and other.is_synced)
        gateway.end(one)
        assert gateway.poll(0.05) == []


def trim(settings: Settings) -> None:
    """Leave all messages but the newest in SQL only."""
    run_bursts(as_user(settings, WORKER), "persist", "receipts")
    with connect(settings, WORKER) as chat:
        retention.trim(chat.system, keep_messages=1)


@pytest.mark.usefixtures("admin")
def test_a_forbidden_recall_changes_nothing(settings: Settings) -> None:
    run_bursts(as_user(settings, WORKER), "persist")
    with connect(settings, GATEWAY) as chat:
        chat.create_group("team", ["ann", "bob"])
        sent = [chat.send("team", text, sender_uid="ann").msgid for text in ("one", "two")]
    with connect(settings, WORKER) as chat:
        with pytest.raises(ConfigurationError, match="im acl"):
            chat.recall("team", sent[0], by="ann")
        assert [each.message.content for each in chat.status("team")] == ["one", "two"]


@pytest.mark.usefixtures("admin")
def test_only_a_worker_may_delete_a_group(settings: Settings) -> None:
    run_bursts(as_user(settings, WORKER), "persist")
    with connect(settings, GATEWAY) as chat:
        talk(chat)
        run_bursts(as_user(settings, WORKER), "persist", "receipts")
        with pytest.raises(ConfigurationError, match="im acl"):
            chat.delete_group("team")
        assert chat.group("team").messages == 11
    with connect(settings, WORKER) as chat:
        assert chat.delete_group("team").messages == 11
        assert chat.groups_of("ann") == ["dm:3:ann:bob", "other"]


def test_a_gateway_can_do_its_work(settings: Settings, watch: Watch, admin: "redis.Redis") -> None:
    # Given a worker that has been there
    run_bursts(as_user(settings, WORKER), "persist")

    # When users talk, some of them a crowd, after a clock that was ahead has left no ids in a millisecond
    with watch.listing() as ran:
        with watch.looking(), connect(replace(settings, idempotency_ms=1), GATEWAY) as chat:
            ahead = f"{time.time_ns() // 1_000_000 + 60_000}-8191"
            for journal in chat.system.client.space.journals():
                admin.xadd(journal, {"kind": "group", "gid": "team"}, id=ahead)
            talk(chat)
            chat.create_group("crowd", [f"user{number}" for number in range(250)])
            for number in range(60):  # twice the number of looks before a table is deleted
                chat.send("team", "so late that older client_msgids go", sender_uid="ann", client_msgid=f"d{number}")
            with pytest.raises(RedisRefuses, match="no replica"):  # the role may ask that
                chat.send("team", "safe", sender_uid="ann", durable="replicated")
            for wait in (("WAIT", "1", "1"), ("WAITAOF", "1", "0", "1")):
                assert admin.execute_command("ACL DRYRUN", GATEWAY.user, *wait) == "OK"

        # And read, and listen
        trim(settings)
        with watch.looking(), connect(settings, GATEWAY) as chat:
            look(chat)
            listen(chat, "ann")
            serve(chat)
            chat.remove_members("team", ["dan"])

    # Then they could, and every right was used, on each kind of key for which there is one
    assert watch.unused(GATEWAY) == set()
    assert kinds_of_rights(GATEWAY) - ran == set()


def test_workers_can_do_their_work(settings: Settings, watch: Watch, admin: "redis.Redis") -> None:
    # Given messages, entries without meaning, and workers that died with all of it in hand
    run_bursts(as_user(settings, WORKER), "persist")
    with connect(settings, GATEWAY) as chat:
        talk(chat)
        space = chat.system.client.space
        for _ in range(2):
            admin.xadd(space.journal(0), {"kind": "nonsense"})
    with connect(settings, WORKER) as chat:
        first, second = (Journal(chat.system.client, "persist", settings) for _ in range(2))
        first.renew()
        second.read()
    admin.delete(lease("persist", 1))
    admin.set(lease("persist", 2), "dead 1", px=10**8)  # by a clock that has been put back since
    admin.function_flush()

    # When workers do their work, and an operator looks at it and clears the dead letters
    with watch.looking():
        with connect(settings, WORKER) as chat:
            chat.system.client.upgrade()
            assert [holder.process for holder in stats(chat.system).silent] == ["persist-2"]
        run_bursts(as_user(settings, WORKER), "persist", "receipts")
        with connect(settings, WORKER) as chat:
            first_letter, *letters = dead_letters.list_dead(chat.system.client)
            dead_letters.requeue(chat.system.client, first_letter.id)
            for letter in letters:
                dead_letters.drop(chat.system.client, letter.id)
        trim(settings)
        admin.config_set("appendonly", "yes")
        try:
            with connect(settings, WORKER) as chat:
                assert append_only.forget_withdrawn(chat.system, always=True) == 1
        finally:
            admin.config_set("appendonly", "no")
        with connect(settings, WORKER) as chat:
            look(chat)
            assert stats(chat.system).workers

    # And erases a user, of whom a dead letter tells
    letter = {"dead_worker": "persist", "dead_reason": "x", "dead_entry": "1-0", "dead_deliveries": "1"}
    admin.xadd(space.dead_letters(0), {**letter, "kind": "join", "gid": "team", "uid": "cy"})
    with watch.looking(), connect(settings, WORKER) as chat:
        chat.send_direct("cy", "hi", sender_uid="ann", client_msgid="to cy")
        assert chat.erase_user("cy").messages > 0

    # And when they repair a part that the server has lost, or never should have had
    group = space.group("team")
    admin.delete(group.acked, *admin.keys("im:*:own:*"))
    admin.zadd(group.joined, {"eve": 0})
    admin.zadd(group.acked, {"eve": 0})
    with watch.looking(), connect(settings, WORKER) as chat:
        assert any(difference.repaired for difference in check.check(chat.system, repair=True))

    # Or all of it
    admin.flushdb()
    with watch.looking(), connect(settings, WORKER) as chat:
        rebuild.rebuild(chat.system)

    # Then they could, and every right was used
    assert watch.unused(WORKER) == set()


def test_jobs_keep_to_their_keys(settings: Settings, watch: Watch, admin: "redis.Redis") -> None:
    # Given a job that fails
    worker_settings = as_user(settings, WORKER)
    with closing(redis.Redis.from_url(worker_settings.redis_url)) as connection:
        queue = Queue(jobs.QUEUE, connection=connection, serializer=JSONSerializer)
        failing = queue.enqueue("imcore.workers.jobs.no_such_job")

        # When the worker enqueues another by itself, and does both
        with watch.looking(), start_worker(as_user(settings, WORKER), "jobs") as worker:
            worker.wait_for("trimmed 0 entries")
            worker.wait_for("no_such_job")
            assert worker.end() == 0

        # Then nothing was refused
        assert failing.get_status(refresh=True) == JobStatus.FAILED
        assert "not permitted" not in worker.log
    assert {str(key).partition(":")[0] for key in admin.keys("*")} <= {"rq", "im"}


def test_a_reader_can_look_at_everything(settings: Settings, watch: Watch, admin: "redis.Redis") -> None:
    # Given messages: some are stored, a worker has read some, and some are only in Redis
    run_bursts(as_user(settings, WORKER), "persist")
    with connect(settings, GATEWAY) as chat:
        talk(chat)
    trim(settings)
    with connect(settings, GATEWAY) as chat:
        chat.send("team", "in hand", sender_uid="ann")
    with connect(settings, WORKER) as chat:
        Journal(chat.system.client, "persist", settings).read()

        Queue("imcore", connection=admin, serializer=JSONSerializer).enqueue("time.time")

    # When a reader runs all queries
    with watch.looking(), connect(settings, READER) as chat:
        assert {each.what: each.ok for each in health(as_user(settings, READER))}["redis"]
        look(chat)
        assert stats(chat.system).workers
        assert list(online_uids(chat.system)) == []
        assert list(dead_letters.list_dead(chat.system.client)) == []
        list(check.check(chat.system))

    # Then they could, and every right was used
    assert watch.unused(READER) == set()


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES.keys())
def test_forbidden_commands_are_refused(settings: Settings, admin: "redis.Redis", role: Role) -> None:
    # Given groups, one of a name that looks like the end of a key that may be deleted
    run_bursts(as_user(settings, WORKER), "persist")
    odd = "x}:own_unacked:y"
    with connect(settings, GATEWAY) as chat:
        for gid in ("team", odd):
            chat.create_group(gid, ["ann", "bob"])
            chat.send(gid, "hi", sender_uid="ann")
        keys = {gid: chat.system.client.space.group(gid) for gid in ("team", odd)}
    beginnings = {gid: k.meta.removesuffix(f"meta:{gid}") for gid, k in keys.items()}
    names = {
        "{journal}": keys["team"].journal,
        "{own}": keys["team"].own_unacked("bob"),
        **{f"{{team}}{kind}": f"{beginnings['team']}{kind}:team" for kind in KINDS},
        **{f"{{p}}{kind}": f"{beginnings['team']}{kind}" for kind in KINDS},
        "{odd}stream": keys[odd].stream,
    }
    before = dump(settings)

    # When a client with that role runs a forbidden command
    with closing(redis.Redis.from_url(as_user(settings, role).redis_url)) as client:
        answers = {
            line: answer_of(client, *(names.get(word, word) for word in line.split())) for line in FORBIDDEN[role]
        }

    # Then each is refused, for want of the right to do so
    assert {line: answer for line, answer in answers.items() if "permission" not in answer} == {}

    # And nothing has changed
    assert dump(settings) == before


def answer_of(client: "redis.Redis", *command: str) -> str:
    try:
        return f"answered {client.execute_command(*command)}"
    except ResponseError as error:
        return str(error)


def dump(settings: Settings) -> dict[Any, Any]:
    with closing(redis.Redis.from_url(settings.redis_url)) as client:
        return {key: client.dump(key) for key in client.keys("*")}


@pytest.mark.parametrize("role", [GATEWAY, READER], ids=["gateway", "reader"])
def test_a_start_before_any_worker_is_an_error(settings: Settings, admin: "redis.Redis", role: Role) -> None:
    with connect(settings, role) as chat, pytest.raises(RedisUnavailable, match="start a worker") as refused:
        chat.unread("ann")
    assert "\n" not in str(refused.value)


def test_a_missing_right_is_one_line_that_says_what_to_do(settings: Settings, admin: "redis.Redis") -> None:
    # Given a reader, and a gateway that has lost a right
    run_bursts(as_user(settings, WORKER), "persist")
    with connect(settings, GATEWAY) as chat:
        chat.create_group("team", ["ann"])
    admin.execute_command("ACL", "SETUSER", GATEWAY.user, "-zscore")

    # Then the error names the missing right, in functions and without
    for role, right in ((READER, "fcall"), (GATEWAY, "zscore")):
        with connect(settings, role) as chat, pytest.raises(ConfigurationError) as refused:
            chat.send("team", "hi", sender_uid="ann")
        assert f"User {role.user} has no permissions to run the '{right}' command" in str(refused.value)
        assert "`im acl`" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert PASSPHRASE not in str(refused.value)


def test_the_printed_command_sets_no_password(admin: "redis.Redis") -> None:
    for role in ROLES.values():
        with pytest.raises(ResponseError, match="password hash must be exactly 64 characters"):
            admin.execute_command(*role.set_user().split())


def test_the_lines_for_an_aclfile_are_the_same_rules(admin: "redis.Redis", tmp_path: Path) -> None:
    # Given a server that has the users from a file
    digest = hashlib.sha256(PASSPHRASE.encode()).hexdigest()
    file = tmp_path / "users.acl"
    file.write_text("".join(role.file_line().replace(PASSWORD, f"#{digest}") + "\n" for role in ROLES.values()))
    server = start_valkey(tmp_path / "other", "--aclfile", str(file), appendonly=False)
    try:
        with closing(redis.Redis.from_url(server.url, decode_responses=True)) as other:
            # Then they are what the commands make of them
            for role in ROLES.values():
                assert other.acl_getuser(role.user) == admin.acl_getuser(role.user)
    finally:
        server.stop()


def test_the_roles_on_a_cluster(cluster_servers: RunningCluster, cluster: str, tmp_path: Path) -> None:
    # Given a cluster with the users
    nodes = [redis.Redis.from_url(node.url) for node in cluster_servers.nodes]
    try:
        for node in nodes:
            for role in ROLES.values():
                node.execute_command(*with_password(role))
            node.acl_log_reset()

        # When workers, a gateway with a live session, and a reader do their work
        settings = Settings.from_env({}, redis_url=cluster, data_dir=str(tmp_path))
        urls = {
            role: cluster.replace("://", f"://{role.user}:{PASSPHRASE.replace(' ', '%20')}@") for role in ROLES.values()
        }
        with Chat.connect(settings=replace(settings, redis_url=urls[WORKER])) as chat:
            Journal(chat.system.client, "persist", settings).read(block_ms=0)
        with Chat.connect(settings=replace(settings, redis_url=urls[GATEWAY])) as chat:
            talk(chat)
            with chat.listen("dan") as session:
                assert next(iter(session))
        with Chat.connect(settings=replace(settings, redis_url=urls[READER])) as chat:
            assert stats(chat.system).groups == 3
            assert chat.unread("cy")

        # Then nothing was refused
        assert [node.acl_log() for node in nodes] == [[], [], []]
    finally:
        for node in nodes:
            node.acl_deluser(*(role.user for role in ROLES.values()))
            node.close()
