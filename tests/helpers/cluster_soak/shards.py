"""A cluster of shards, each a primary and a replica: nodes are killed, stopped and replaced, and slots move."""

import random
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from imcore.embedded.server import find_server
from tests.helpers.deadline import wait_until
from tests.helpers.processes import Process
from tests.helpers.servers import SLOTS, free_ports

NODE_TIMEOUT_MS = 1500
"""A node that is silent for so long has failed, and its replica takes over a moment later."""
WHOLE_S = 90.0
_ANSWER_S = 2.0
_NO_WORD = (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)


class ShardNode:
    """One server: who it is stays, its process comes and goes."""

    def __init__(self, folder: Path, port: int, bus: int, program: Path, options: Mapping[str, int]) -> None:
        self.port, self.bus = port, bus
        self._folder, self._program, self._options = folder, program, options
        folder.mkdir(parents=True)
        self.start()
        self.admin: Any = redis.Redis(port=port, socket_timeout=_ANSWER_S, decode_responses=True)

    def __repr__(self) -> str:
        return f"node {self.port}"

    @property
    def runs(self) -> bool:
        return self.process.runs

    def start(self) -> None:
        """Start it, on what it had written before."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "no",
            "repl-diskless-sync-delay": 0,
            "cluster-enabled": "yes",
            "cluster-port": self.bus,
            "cluster-announce-ip": "127.0.0.1",
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            "cluster-require-full-coverage": "no",
            **self._options,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with (self._folder / "log").open("ab") as log:
            self.process = Process(subprocess.Popen([self._program, *arguments], stdout=log, stderr=log))

    def answers(self) -> bool:
        """Return whether it runs, and answers."""
        try:
            return bool(self.admin.ping())
        except _NO_WORD:
            return False

    def kill(self) -> None:
        """End it with SIGKILL. What it has written is there for `start`."""
        self.process.kill()

    def halt(self) -> None:
        """Stop its process: the system goes on accepting connections to it."""
        self.process.send(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send(signal.SIGCONT)

    def id(self) -> str:
        return str(self.admin.execute_command("CLUSTER MYID"))

    def is_primary(self) -> bool:
        return bool(self.admin.info("replication")["role"] == "master")

    def has(self, slot: int) -> bool:
        """Return whether it takes itself for the primary of a slot."""
        [own] = [each for each in self.admin.execute_command("CLUSTER NODES").values() if "myself" in each["flags"]]
        return "master" in own["flags"] and any(int(ends[0]) <= slot <= int(ends[-1]) for ends in own["slots"])


class Shards:
    """The nodes of all shards."""

    def __init__(
        self, folder: Path, shards: int = 3, *, program: Path | None = None, options: Mapping[str, int] | None = None
    ) -> None:
        """`program` is that of another server, `options` are settings of all nodes."""
        ports = free_ports(4 * shards)
        self.nodes: list[ShardNode] = []
        self._shards = shards
        try:
            for number in range(2 * shards):
                port, bus = ports[2 * number : 2 * number + 2]
                self.nodes.append(
                    ShardNode(folder / f"node{number}", port, bus, program or find_server(), options or {})
                )
            self._join()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """A URL that names all nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.kill()

    def _join(self) -> None:
        wait_until(lambda: all(node.answers() for node in self.nodes))
        primaries, replicas = self.nodes[: self._shards], self.nodes[self._shards :]
        for number, node in enumerate(primaries):
            node.admin.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            first, after = (SLOTS * each // self._shards for each in (number, number + 1))
            node.admin.execute_command("CLUSTER ADDSLOTSRANGE", first, after - 1)
        for node in self.nodes[1:]:
            node.admin.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].bus)
        wait_until(lambda: all(self._known(node) == len(self.nodes) for node in self.nodes), WHOLE_S)
        for primary, replica in zip(primaries, replicas, strict=True):
            replica.admin.execute_command("CLUSTER REPLICATE", primary.id())
        self.wait_until_whole()

    def _known(self, node: ShardNode) -> int:
        return int(node.admin.execute_command("CLUSTER INFO")["cluster_known_nodes"])

    def wait_until_whole(self) -> None:
        """Wait until every shard has a primary and a replica that follows it, and all nodes agree on who has what."""
        wait_until(self.is_whole, WHOLE_S)

    def is_whole(self) -> bool:
        """Return whether every shard has a primary and a replica that follows it, and all nodes agree on that."""
        try:
            return self._is_whole()
        except _NO_WORD:
            return False

    def _is_whole(self) -> bool:
        infos = [node.admin.execute_command("CLUSTER INFO") for node in self.nodes]
        if any((info["cluster_state"], info["cluster_slots_ok"]) != ("ok", str(SLOTS)) for info in infos):
            return False
        roles = [node.admin.info("replication") for node in self.nodes]
        primaries = [role for role in roles if role["role"] == "master"]
        followed = all(
            role["connected_slaves"] == 1 and role["slave0"]["state"] == "online" for role in primaries
        ) and all(role["master_link_status"] == "up" for role in roles if role["role"] != "master")
        views = {str(sorted(_view(node))) for node in self.nodes}
        return len(primaries) == self._shards and followed and len(views) == 1

    # Who is who. The cluster has to be whole.

    def primaries(self) -> list[ShardNode]:
        return [node for node in self.nodes if node.is_primary()]

    def primary_of(self, slot: int) -> ShardNode:
        return next(node for node in self.nodes if node.has(slot))

    def replica_of(self, primary: ShardNode) -> ShardNode:
        port = int(primary.admin.info("replication")["slave0"]["port"])
        return next(node for node in self.nodes if node.port == port)

    # What befalls nodes and slots.

    def has_taken_over(self, replica: ShardNode) -> bool:
        """Return whether a replica is the primary of its shard now."""
        with suppress(*_NO_WORD):
            return replica.is_primary()
        return False

    def cut_off(self, primary: ShardNode, replica: ShardNode) -> None:
        """Stop a replica, and close its link from the primary's side: it gets no more until both answer again."""
        replica.halt()
        primary.admin.execute_command("CLIENT KILL TYPE replica")

    def hand_over(self, replica: ShardNode) -> None:
        """Ask a replica to take over in order: nothing is lost."""
        replica.admin.execute_command("CLUSTER FAILOVER")

    def migrate(self, slot: int, target: ShardNode, pause: Any = lambda: None) -> None:
        """Move a slot key by key; `pause` is called between some of them."""
        source = self.primary_of(slot)
        source_id, target_id = source.id(), target.id()
        target.admin.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
        source.admin.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.admin.execute_command("CLUSTER GETKEYSINSLOT", slot, 20):
            source.admin.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            pause()
        for node in (target, source, *(each for each in self.primaries() if each not in (target, source))):
            node.admin.execute_command("CLUSTER SETSLOT", slot, "NODE", target_id)

    def migrate_slots(self, slots: Sequence[int], target: ShardNode) -> None:
        """Ask for slots to be moved at once (Valkey 9)."""
        source = self.primary_of(slots[0])
        ends = [end for slot in slots for end in (slot, slot)]
        source.admin.execute_command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", *ends, "NODE", target.id())

    def another(self, node: ShardNode, chance: random.Random) -> ShardNode:
        """Return some other primary."""
        return chance.choice([each for each in self.primaries() if each is not node])


def _view(node: ShardNode) -> list[tuple[str, str, str]]:
    nodes = node.admin.execute_command("CLUSTER NODES")
    return [(each["node_id"], each["master_id"], str(sorted(each["slots"]))) for each in nodes.values()]
