"""A primary and a replica that three Sentinels watch."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from imcore.embedded.server import find_server
from tests.helpers.deadline import wait_until
from tests.helpers.servers import RunningServer, free_ports, require_server, start_valkey

NAME = "mine"

_CONFIGURATION = """
port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor mine 127.0.0.1 {primary} 2
sentinel down-after-milliseconds mine 1000
sentinel failover-timeout mine 4000
"""


@dataclass(frozen=True)
class WatchedServers:
    primary: RunningServer
    replica: RunningServer
    ports: tuple[int, int]
    """Of the primary, and of the replica."""
    sentinels: tuple[int, ...]
    """Their ports."""

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}"


@contextmanager
def watched(folder: Path) -> Iterator[WatchedServers]:
    """Start all of them; the Sentinels know each other and the replica, which has caught up."""
    require_server()
    ports = free_ports(5)
    with ExitStack() as stack:
        servers = []
        for port in ports[:2]:
            options = ("--port", str(port), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0")
            servers.append(start_valkey(folder / str(port), *options, appendonly=False))
            stack.callback(servers[-1].kill)
        with redis.Redis.from_url(servers[1].url) as client:
            client.replicaof("127.0.0.1", ports[0])
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", timeout_s=30)
        for port in ports[2:]:
            _start(stack, folder / f"sentinel{port}", port, ports[0])
        for port in ports[2:]:
            with redis.Redis(port=port, decode_responses=True) as sentinel:
                wait_until(lambda sentinel=sentinel: _knows_all(sentinel), timeout_s=30)
        yield WatchedServers(servers[0], servers[1], (ports[0], ports[1]), tuple(ports[2:]))


def _start(stack: ExitStack, folder: Path, port: int, primary: int) -> None:
    folder.mkdir()
    file = folder / "sentinel.conf"
    file.write_text(_CONFIGURATION.format(port=port, folder=folder, primary=primary))
    process = subprocess.Popen([find_server(), str(file), "--sentinel"], stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)


def _knows_all(sentinel: redis.Redis) -> bool:
    try:
        state = sentinel.sentinel_master(NAME)
    except redis.ConnectionError:
        return False
    return state["num-slaves"] == 1 and state["num-other-sentinels"] == 2
