"""A primary and a replica that follows it, for tests that stop or kill one of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer, free_ports, require_server, start_valkey


@dataclass(frozen=True)
class ReplicatedServer:
    primary: RunningServer
    replica: RunningServer

    def promote(self) -> None:
        """Make the replica a primary."""
        with redis.Redis.from_url(self.replica.url) as client:
            client.replicaof("NO", "ONE")


@contextmanager
def replicated(folder: Path) -> Iterator[ReplicatedServer]:
    """Start both; the replica has caught up."""
    require_server()
    [port] = free_ports(1)
    primary = start_valkey(folder / "primary", "--port", str(port), "--bind", "127.0.0.1", appendonly=False)
    replica = start_valkey(folder / "replica", appendonly=False)
    try:
        with redis.Redis.from_url(replica.url) as client:
            client.replicaof("127.0.0.1", port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", timeout_s=30)
        yield ReplicatedServer(primary, replica)
    finally:
        primary.kill()
        replica.kill()
