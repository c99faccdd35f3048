"""A signal whose handler raises, as that of Ctrl-C does, comes at any moment: also while a command is packed."""

import subprocess
import sys
from contextlib import closing

import pytest

from imcore.streams.client import open_client
from imcore.streams.connections import TcpConnection
from tests.house.sources import ROOT

PROGRAM = """
import signal
from imcore.streams.connections import TcpConnection, TlsConnection, UnixConnection
from imcore.streams.packing import pack

class Interrupted(Exception):
    pass

class Ratio(float):
    pass

def interrupt(*_):
    raise Interrupted

signal.signal(signal.SIGALRM, interrupt)
command, pack_it = ("SADD", b"numbers", *map(Ratio, range(500)), *range(1500)), {pack_it}
for _ in range(100):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0007)
        for _ in range(20):
            pack_it(command)
    except Interrupted:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
packed = pack_it(command)
print(len(packed if isinstance(packed, bytes) else b"".join(packed)))
"""


@pytest.mark.parametrize(
    "pack_it",
    [
        "pack",
        "(lambda connection: lambda command: connection.pack_command(*command))(TcpConnection())",
        "(lambda connection: lambda command: connection.pack_command(*command))(TlsConnection())",
        "(lambda connection: lambda command: connection.pack_commands([command]))(UnixConnection(path='x'))",
    ],
)
def test_the_process_lives(pack_it: str) -> None:
    program = PROGRAM.format(pack_it=pack_it)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert int(ended.stdout) > 2000


def test_all_commands_are_packed_so() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "imcore").rglob("*.py")}
    assert [name for name, text in texts.items() if "import pack_command" in text] == ["imcore/streams/packing.py"]


def test_every_node_of_a_cluster_has_such_connections(cluster: str) -> None:
    with closing(open_client(cluster)) as client:
        client.ping()
        pools = [node.redis_connection.connection_pool for node in client.get_primaries()]
        assert [pool.connection_class for pool in pools] == [TcpConnection] * 3
