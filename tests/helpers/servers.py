"""Real servers for the tests: Valkey (or Redis) alone and as a cluster, ended by those who started them."""

import os
import random
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from imcore.embedded.server import EmbeddedServer, find_server
from imcore.errors import EmbeddedServerError
from tests.helpers.deadline import wait_until

SLOTS = 16_384


@dataclass(frozen=True)
class RunningServer:
    """A server that answers on `url`, a unix socket."""

    server: EmbeddedServer
    pid: int

    @property
    def url(self) -> str:
        return self.server.url

    def flush(self) -> None:
        """Empty it, functions included."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
            client.function_flush("SYNC")

    @property
    def port(self) -> int:
        """The port of a cluster's node. It has to answer."""
        with redis.Redis.from_url(self.url) as client:
            return int(client.config_get("port")["port"])

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stop the process in a `with`: the system goes on accepting connections to it."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it; what an append-only file should hold is in it."""
        self.server.stop()

    def kill(self) -> None:
        """End it as a crash would. What it wrote to disk is there for `start_valkey` on the same folder."""
        if self.server.running:
            os.kill(self.pid, signal.SIGKILL)
        self.server.stop()


@dataclass(frozen=True)
class RunningCluster:
    """A cluster, all slots owned, on loopback; each node has a unix socket too (`nodes[0].url`)."""

    url: str
    nodes: Sequence[RunningServer]

    @property
    def url_of_all(self) -> str:
        """A URL that names all nodes. They have to answer."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def flush(self) -> None:
        """Empty every node, functions included."""
        for node in self.nodes:
            node.flush()

    def stop(self) -> None:
        """End every node."""
        for node in self.nodes:
            node.stop()


def require_server() -> None:
    """Skip the test where there is no server program; fail it in CI."""
    try:
        find_server()
    except EmbeddedServerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def start_valkey(folder: Path, *args: str, appendonly: bool = True) -> RunningServer:
    """Start a server with its data in `folder`; `args` are added to its command line, such as `--maxmemory 10mb`.

    It leaves syncing to the system: with `everysec` it holds writes back where a disk is slow, and a kill loses them.
    """
    server = EmbeddedServer(
        folder, options=["--appendonly", "yes" if appendonly else "no", "--appendfsync", "no", *args]
    )
    server.start()
    assert server.pid is not None
    return RunningServer(server, server.pid)


def start_cluster(folder: Path, nodes: int = 3) -> RunningCluster:
    """Start a cluster of `nodes` nodes, without replicas, on free ports."""
    started: list[RunningServer] = []
    try:
        free = iter(free_ports(2 * nodes))
        ports = list(zip(free, free, strict=True))
        for number, (port, bus) in enumerate(ports):
            started.append(_start_node(folder / f"node{number}", port, bus))
        _join(started, ports)
    except BaseException:
        RunningCluster("", started).stop()
        raise
    return RunningCluster(f"redis+cluster://127.0.0.1:{ports[0][0]}", started)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on at this moment, and that the system gives to nobody by itself."""
    chance = random.SystemRandom()  # other processes look for ports, too
    ports: list[int] = []
    with ExitStack() as taken:
        while len(ports) < count:
            port = chance.randrange(10_000, 32_768)
            with suppress(OSError):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


def _start_node(folder: Path, port: int, bus: int) -> RunningServer:
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "cluster-enabled": "yes",
        "cluster-port": bus,
        "cluster-announce-ip": "127.0.0.1",
        "cluster-node-timeout": 60_000,  # one that is halted for some seconds has not failed
    }
    return start_valkey(
        folder, *(part for name, value in options.items() for part in (f"--{name}", str(value))), appendonly=False
    )


def _join(nodes: Sequence[RunningServer], ports: Sequence[Sequence[int]]) -> None:
    bounds = [SLOTS * i // len(nodes) for i in range(len(nodes) + 1)]
    clients = [redis.Redis.from_url(node.url) for node in nodes]
    try:
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for port, bus in ports[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", port, bus)
        wait_until(lambda: all(_is_whole(client, len(nodes)) for client in clients), timeout_s=30)
    finally:
        for client in clients:
            client.close()


def _is_whole(client: redis.Redis, nodes: int) -> bool:
    info = client.execute_command("CLUSTER INFO")
    return (info["cluster_state"], info["cluster_slots_ok"], info["cluster_known_nodes"]) == (
        "ok",
        str(SLOTS),
        str(nodes),
    )


def add_replica(cluster: RunningCluster, folder: Path) -> RunningServer:
    """Start a replica of the cluster's first node, and wait until it has its data and clients know it."""
    [(port, bus)] = [free_ports(2)]
    replica = _start_node(folder, port, bus)
    try:
        with redis.Redis.from_url(cluster.nodes[0].url) as first, redis.Redis.from_url(replica.url) as client:
            client.execute_command("CLUSTER MEET", "127.0.0.1", first.config_get("port")["port"], _bus_of(first))
            wait_until(lambda: _is_whole(client, len(cluster.nodes) + 1), timeout_s=30)
            first.config_set("repl-diskless-sync-delay", 0)
            client.execute_command("CLUSTER REPLICATE", first.execute_command("CLUSTER MYID"))
            wait_until(lambda: client.info("replication").get("master_link_status") == "up", timeout_s=30)
            wait_until(lambda: all(len(slots) > 3 for slots in first.execute_command("CLUSTER SLOTS")), timeout_s=30)
    except BaseException:
        replica.stop()
        raise
    return replica


def _bus_of(node: redis.Redis) -> int:
    return int(node.config_get("cluster-port")["cluster-port"])


def move_slot(
    servers: RunningCluster, slot: int, target: int | None = None, *, meanwhile: Callable[[], object] = lambda: None
) -> int:
    """Move a slot of the cluster to a node, the next one if none is given; return which one had it.

    `meanwhile` is called when the keys are there already, and the slot is not.
    """
    nodes = [redis.Redis.from_url(node.url) for node in servers.nodes]
    try:
        ids = [node.execute_command("CLUSTER MYID") for node in nodes]
        source = next(at for at, node in enumerate(nodes) if _owns(node, slot))
        target = (source + 1) % len(nodes) if target is None else target
        nodes[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        nodes[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
        port = nodes[target].config_get("port")["port"]
        while keys := nodes[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            nodes[source].execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
        meanwhile()
        for node in (nodes[target], nodes[source], *nodes):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
    finally:
        for node in nodes:
            node.close()
    return source


def _owns(node: redis.Redis, slot: int) -> bool:
    [ranges] = [info["slots"] for info in node.execute_command("CLUSTER NODES").values() if "myself" in info["flags"]]
    return any(int(ends[0]) <= slot <= int(ends[-1]) for ends in ranges)
