"""What no server has is taken back: of a primary that was stopped, replaced, and woke up, or of one that is lost."""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from imcore import Chat, NewMessage, Rewound, Session
from imcore import msgid as msgids
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.errors import TryAgain
from imcore.model.values import Draft
from imcore.settings import Settings
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.packing import pack
from tests.helpers.deadline import wait_until
from tests.helpers.devices import listen, texts, until_all_have_happened
from tests.helpers.gateways import Audience
from tests.helpers.servers import RunningServer, add_replica, require_server, start_cluster
from tests.helpers.talk import offset, say

MOST_S = 60.0


class View(Audience):
    """An audience whose clients do what they are told: each has the messages that it was handed, less those lost."""

    def texts(self, session: Session) -> list[str]:
        texts: dict[str, str] = {}
        for event in self.events[session]:
            if isinstance(event, NewMessage):
                texts[event.message.msgid] = event.message.content
            elif isinstance(event, Rewound):
                after = msgids.position_of(event.after_msgid or "0-0")
                texts = {msgid: text for msgid, text in texts.items() if msgids.position_of(msgid) <= after}
        return list(texts.values())


class Shard:
    """The part of a cluster that has the group `team`: its primary, and a replica."""

    def __init__(self, primary: RunningServer, replica: RunningServer) -> None:
        self.primary, self.replica = primary, replica

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the primary in a `with`; it wakes up at the end."""
        os.kill(self.primary.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.primary.pid, signal.SIGCONT)

    def take_over(self) -> None:
        """Let the replica be the primary; wait until it is."""
        with redis.Redis.from_url(self.replica.url) as client:
            client.execute_command("CLUSTER FAILOVER", "TAKEOVER")
            wait_until(lambda: client.info("replication")["role"] == "master", timeout_s=MOST_S)

    def connection(self) -> socket.socket:
        """Return a connection: what is sent on it while the primary is stopped is done as it wakes up."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.primary.url.removeprefix("unix://"))
        connection.sendall(pack(("PING",)))
        assert connection.recv(100) == b"+PONG\r\n"
        return connection


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    """A cluster of one primary, which has all groups, and its replica."""
    require_server()
    cluster = start_cluster(tmp_path / "cluster", nodes=1)
    try:
        replica = add_replica(cluster, tmp_path / "replica")
        try:
            yield Shard(cluster.nodes[0], replica)
        finally:
            replica.kill()
    finally:
        cluster.nodes[0].kill()


@pytest.fixture
def settings(shard: Shard, tmp_path: Path) -> Settings:
    ports = []
    for node in (shard.replica, shard.primary):
        with redis.Redis.from_url(node.url) as client:
            ports.append(client.config_get("port")["port"])
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    database_url = f"sqlite:///{tmp_path / 'imcore.db'}"
    return Settings.from_env(
        {"IM_CALL_TIMEOUT_MS": "2000"}, data_dir=str(tmp_path), redis_url=url, database_url=database_url
    )


@pytest.fixture
def gid(chat: Chat) -> str:
    chat.create_group("team", ["ann", "bob", "cy"])
    return "team"


def packed(call: Call[object]) -> bytes:
    return pack(("FCALL", call.function, len(call.keys), *call.keys, *call.args))


def server_has(chat: Chat, gid: str, uid: str = "ann") -> Mapping[str, str]:
    return {message.msgid: message.content for message in chat.history(uid, gid).messages}


def drafts(chat: Chat, gid: str, *texts: str) -> Call[object]:
    items = [Draft("ann", text, client_msgid=f"c-{text}") for text in texts]
    return message_calls.send(chat.system.client.space, gid, items, chat.system.settings.idempotency_ms)


def repeat_until_sent(chat: Chat, gid: str, text: str) -> None:
    def is_sent() -> bool:
        try:
            chat.send(gid, text, sender_uid="ann", client_msgid=f"c-{text}")
        except TryAgain:
            return False
        return True

    wait_until(is_sent, timeout_s=MOST_S)


@pytest.mark.parametrize("meanwhile", [(), ("ghost 1",), ("ghost 2", "other", "third")], ids=["none", "one", "more"])
def test_what_a_primary_does_that_was_replaced_is_taken_back(
    chat: Chat, gid: str, shard: Shard, meanwhile: tuple[str, ...]
) -> None:
    # Given three sessions that have two messages
    say(chat, "first", "second", gid=gid)
    with chat.gateway(ack_interval_s=0.02) as gateway:
        view = View(gateway)
        sessions = [gateway.open(uid, start="join") for uid in ("ann", "bob", "cy")]
        view.until(lambda: all(view.texts(each) == ["first", "second"] for each in sessions))
        # When the primary is stopped with sends in its socket, is replaced, and wakes up
        with shard.connection() as connection, shard.stopped():
            connection.sendall(packed(drafts(chat, gid, "ghost 1", "ghost 2")))
            shard.take_over()
            for text in meanwhile:
                repeat_until_sent(chat, gid, text)
        # Then they are handed what it does, and in the end what the server has
        view.until(lambda: all("ghost 2" in view.heard(each, gid) for each in sessions), MOST_S)
        view.until(lambda: all(view.texts(each) == ["first", "second", *meanwhile] for each in sessions), MOST_S)
        end = say(chat, "end", gid=gid)[-1]
        expected = ["first", "second", *meanwhile, "end"]
        view.until(lambda: all(view.texts(each) == expected for each in sessions), MOST_S)
        assert list(server_has(chat, gid).values()) == expected
        # And they have read it
        view.until(lambda: offset(chat, "bob", gid) == offset(chat, "cy", gid) == end.msgid, MOST_S)
        assert [each.unread for each in chat.unread("bob")] == [0]
        tally = chat.tally(gid, end.msgid)
        assert (tally.read, tally.unread) == (2, 0)


def test_a_local_database_has_nothing_that_no_server_has(
    chat: Chat, gid: str, shard: Shard, settings: Settings
) -> None:
    # Given a device of the sender, which is live, and has queued what lies in the socket of a stopped primary
    say(chat, "first", gid=gid, sender="bob")
    with LocalDatabase(path_of(settings.data_dir, "ann"), "ann", exclusive=True) as local, ExitStack() as stack:
        ann, events = Device(chat, "ann", local), []

        def story() -> Iterator[Callable[[], object]]:
            yield lambda: texts(local, gid) == ["first"]
            connection = stack.enter_context(shard.connection())
            with shard.stopped():
                connection.sendall(packed(drafts(chat, gid, "ghost 1", "ghost 2")))
                shard.take_over()
                repeat_until_sent(chat, gid, "ghost 2")
                repeat_until_sent(chat, gid, "other")
            # Then it has what the server has, and sends again what it had taken to be stored
            yield lambda: any(isinstance(event, Rewound) for event in events)
            yield lambda: texts(local, gid) == ["first", "ghost 2", "other", "ghost 1"]

        listen(ann, until_all_have_happened(story()), events)
        assert [line.msgid for line in local.log(gid)] == list(server_has(chat, gid))
        assert list(server_has(chat, gid).values()) == texts(local, gid)
