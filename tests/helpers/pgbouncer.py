"""PgBouncer before a PostgreSQL of the tests: on a unix socket in that server's folder, nowhere else."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg

from tests.helpers import apt
from tests.helpers.deadline import wait_until
from tests.helpers.postgres import PostgresServer

_PORTS = count(6432)
"""Each one has a port of its own, which is only a part of its socket's name."""


@dataclass(frozen=True)
class Bouncer:
    """A running one."""

    folder: Path
    port: int

    def url(self, database_url: str, options: str = "") -> str:
        """Return the URL of the same database, by way of it."""
        name = database_url.partition("?")[0].rpartition("/")[2]
        return f"postgresql://postgres@/{name}?host={self.folder}&port={self.port}{options}"


@contextmanager
def running_pgbouncer(postgres: PostgresServer, **settings: str | int) -> Iterator[Bouncer]:
    """Run it with these settings before all databases of a server; end it at the end."""
    folder, port = postgres.folder, next(_PORTS)
    path = folder / "pgbouncer.ini"
    lines = [
        *("[databases]", f"* = host={folder} user=postgres", "[pgbouncer]"),
        *("listen_addr =", f"listen_port = {port}", f"unix_socket_dir = {folder}", "auth_type = any"),
        *(f"{name} = {value}" for name, value in settings.items()),
    ]
    path.write_text("\n".join(lines) + "\n")
    as_user = ["-u", postgres.user] if postgres.user else []
    with (folder / "pgbouncer.log").open("ab") as log:
        process = subprocess.Popen([apt.PGBOUNCER.needed, "-q", *as_user, path], stdout=log, stderr=log)
    bouncer = Bouncer(folder, port)
    try:
        wait_until(lambda: _answers(bouncer, process))
        yield bouncer
    finally:
        process.terminate()
        process.wait(20)


def _answers(bouncer: Bouncer, process: "subprocess.Popen[bytes]") -> bool:
    try:
        psycopg.connect(bouncer.url("postgresql:///postgres")).close()
    except psycopg.OperationalError:
        log = (bouncer.folder / "pgbouncer.log").read_text()
        assert process.poll() is None, f"PgBouncer ended: {log}"
        return False
    return True
