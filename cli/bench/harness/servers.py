"""The servers of a benchmark: throw-away ones, or an empty Redis and an empty database that were named."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from imcore.chat import Chat
from imcore.cli.bench.harness import cpu
from imcore.cli.bench.harness.databases import DatabaseMaker, PostgresSchemas, SqliteFiles, running_postgres
from imcore.cli.bench.harness.nodes import drop_ours, nodes_of
from imcore.cli.bench.harness.traffic import backlog
from imcore.cli.sandbox import Processes, Sandbox, open_sandbox
from imcore.errors import ImError, RefusedError
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.calls import group_calls
from imcore.streams.client import open_client
from imcore.streams.consumers import alive_in
from imcore.streams.redis_errors import address, driver_errors

_LIBRARY = "imcore"
_LONGEST_S = 300
_PAUSE_S = 0.02
"""Asking costs the server time, too, which is measured."""


@dataclass(frozen=True, slots=True)
class BenchServers(Sandbox):
    """A sandbox to measure. `name` begins every gid and uid; `databases` make empty databases, the main kind first."""

    name: str
    databases: Sequence[DatabaseMaker]

    @property
    def maker(self) -> DatabaseMaker:
        """The main kind of database."""
        return self.databases[0]

    def using(self, database_url: str, **settings: Any) -> "BenchServers":
        """Return the same servers with a database that `tables` made, and with these settings changed."""
        return replace(self, settings=replace(self.settings, database_url=database_url, **settings))

    def tables(self, maker: DatabaseMaker | None = None) -> str:
        """Make a database with the tables of imcore, bound to the groups that Redis has now; return its URL."""
        url = (maker or self.maker).new()
        with Database.connect(url) as database, self.chat() as chat:
            database.upgrade()
            client = chat.system.client
            database.bind(*client.call(group_calls.init(client.space.partitions, uuid.uuid4().hex)))
        return url

    @contextmanager
    def running(self, *names: str) -> "Iterator[RunningServers]":
        """Run these workers, ready in the `with`."""
        with self.workers(*names) as workers, self.chat() as chat:
            client, ready = chat.system.client, f"the workers {', '.join(names)} are ready"
            workers.wait(lambda: all(all(alive_in(client, name).values()) for name in names), ready)
            yield RunningServers(self, chat, workers, names)


@dataclass(frozen=True, slots=True)
class RunningServers:
    """Servers with a Chat and running workers."""

    servers: BenchServers
    chat: Chat
    workers: Processes
    names: tuple[str, ...]

    def wait_until_stored(self) -> None:
        """Wait until the workers have done every journal entry. Raise ImError if that takes too long."""
        self.workers.wait(
            lambda: not backlog(self.chat, *self.names),
            "everything is stored",
            timeout_s=_LONGEST_S,
            pause_s=_PAUSE_S,
        )

    def rest(self) -> None:
        """Wait until databases and workers have come to rest: what one design leaves to do is no burden to others."""
        self.wait_until_stored()
        self.servers.maker.settle()
        cpu.wait_until_idle(self.clocks())

    def clocks(self, **pids: int) -> cpu.Clocks:
        """Return the clocks of all processes: those here, and others that take part."""
        server = self.servers.maker.server_pid
        return cpu.clocks(self.chat, {**self.workers.pids, **pids, **({cpu.SQL_SERVER: server} if server else {})})


@contextmanager
def open_servers(settings: Settings) -> Iterator[BenchServers]:
    """Start throw-away servers; a Redis and a database that the settings name are used instead, if they are empty.

    Raise RefusedError where one holds data. Functions of another imcore are not replaced, either.
    """
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with ExitStack() as things:
        if not settings.embedded:
            things.enter_context(_named_redis(settings.redis_url))
        sandbox = things.enter_context(open_sandbox("im-bench-", None if settings.embedded else settings.redis_url))
        databases = _databases(things, settings, sandbox.settings.data_dir.parent, name)
        servers = BenchServers(sandbox.settings, name, databases)
        with servers.chat() as chat:
            chat.system.client.require_functions(writes=True)  # some benchmarks begin with a query
        yield servers


@contextmanager
def _named_redis(url: str) -> Iterator[None]:
    """Check that a server is empty, each primary of a cluster, and leave it empty. Raise RefusedError if it is not."""
    where = address(url)
    with driver_errors(where), open_client(url) as client:
        nodes = nodes_of(client)
        if any(node.info("keyspace") for node in nodes):
            raise _not_empty(where, "--redis-url")
        had_library = any(node.function_list(library=_LIBRARY) for node in nodes)
    try:
        yield
    finally:
        with suppress(ImError, RedisError), open_client(url) as client:
            drop_ours(client)
            for node in () if had_library else nodes_of(client):
                node.function_delete(_LIBRARY)


def _not_empty(where: str, option: str) -> RefusedError:
    return RefusedError(
        f"{where} holds data, and a benchmark slows down whoever uses it: name an empty one with {option}, "
        "or none for a throw-away one"
    )


def _databases(things: ExitStack, settings: Settings, folder: Path, name: str) -> list[DatabaseMaker]:
    """Return what makes databases: the given kind alone, or PostgreSQL, where its wheel is, and SQLite."""
    makers: list[DatabaseMaker] = [SqliteFiles(folder, name)]
    if settings.database_url != Settings.from_env({}, data_dir=str(settings.data_dir)).database_url:
        makers = [_named_database(settings.database_url, name)]
    elif server := things.enter_context(running_postgres(folder / "postgres")):
        url, pid = server
        makers.insert(0, PostgresSchemas(url, name, pid))
    for maker in makers:
        things.callback(maker.drop_all)
    return makers


def _named_database(url: str, name: str) -> DatabaseMaker:
    with Database.connect(url) as database:  # refuses a URL of another kind
        where = database.address
    maker: DatabaseMaker
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///")).absolute()
        maker = SqliteFiles(path.parent, name)
        is_empty = not path.exists() or not path.stat().st_size
    else:
        maker = PostgresSchemas(url, name)
        is_empty = maker.is_empty()
    if not is_empty:
        raise _not_empty(where, "--database-url")
    return maker
