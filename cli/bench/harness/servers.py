"""The servers of a benchmark: throw-away ones, or an empty Redis and an empty database that were named."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError

from imcore.chat import Chat
from imcore.cli.bench.harness.databases import DatabaseMaker, PostgresSchemas, SqliteFiles
from imcore.cli.bench.harness.postgres import programs_folder, running_postgres
from imcore.cli.sandbox import Processes, Sandbox, open_sandbox
from imcore.errors import ImError, RefusedError
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams import keys, library
from imcore.streams.calls import group_calls
from imcore.streams.client import open_client
from imcore.streams.redis_errors import address, driver_errors

_LIBRARY = "imcore"
_PAGE = 100_000


@dataclass(frozen=True, slots=True)
class BenchServers(Sandbox):
    """What is measured. `name` begins every gid and uid; `databases` make empty databases, the main kind first."""

    name: str = ""
    databases: Sequence[DatabaseMaker] = ()

    @property
    def maker(self) -> DatabaseMaker:
        """The main kind of database."""
        return self.databases[0]

    def using(self, database_url: str, **settings: Any) -> "BenchServers":
        """Return the same servers with a database that `tables` made, and with other settings where they are given."""
        return replace(self, settings=replace(self.settings, database_url=database_url, **settings))

    def tables(self, maker: DatabaseMaker | None = None) -> str:
        """Make a database with the tables of imcore, for what Redis has now; return its URL."""
        url = (maker or self.maker).new()
        with Database.connect(url) as database, self.chat() as chat:
            database.upgrade()
            client = chat.system.client
            database.bind(*client.call(group_calls.init(client.space.partitions, uuid.uuid4().hex)))
        return url

    def clear(self) -> None:
        """Remove what a benchmark has left in Redis, so that the next one begins as if it were the first."""
        with driver_errors(address(self.settings.redis_url)), open_client(self.settings.redis_url) as client:
            _unlink_all(client)

    @contextmanager
    def running_workers(self, *names: str) -> Iterator[Processes]:
        """Run workers, ready in the `with`."""
        with self.workers(*names) as workers, self.chat() as chat:
            leases = [("EXISTS", keys.lease(name, 1)) for name in names]
            workers.wait(
                lambda: all(chat.system.client.query_many(leases)), f"the workers {', '.join(names)} are ready"
            )
            yield workers


def backlog(chat: Chat, *kinds: str) -> int:
    """Return how many journal entries these kinds of workers have not done; 0 too where they have not begun.

    It reads little, since benchmarks ask often: `imcore.streams.consumers` reads the entries.
    """
    client = chat.system.client
    return sum(
        _not_done(chat, journal, info)
        for journal in client.space.journals()
        if client.query("EXISTS", journal)
        for info in client.query("XINFO GROUPS", journal)
        if info["name"].decode() in kinds
    )


def _not_done(chat: Chat, journal: str, info: dict[str, Any]) -> int:
    undelivered = info["lag"]
    if undelivered is None:  # as it is once an entry was deleted, which making a large group does
        after = info["last-delivered-id"].decode()
        undelivered = len(chat.system.client.query("XRANGE", journal, f"({after}", "+", "COUNT", _PAGE))
    return int(undelivered + info["pending"])


@contextmanager
def open_servers(settings: Settings) -> Iterator[BenchServers]:
    """Start throw-away servers; a Redis and a database that the settings name are used instead, if they are empty.

    Raise RefusedError where one holds data, for a cluster, and where it has functions of another imcore.
    """
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with ExitStack() as things:
        if not settings.embedded:
            things.enter_context(_named_redis(settings.redis_url))
        sandbox = things.enter_context(open_sandbox("im-bench-", None if settings.embedded else settings.redis_url))
        databases = _databases(things, settings, sandbox.settings.data_dir.parent, name)
        servers = BenchServers(sandbox.settings, sandbox.server, name, databases)
        with servers.chat() as chat:
            chat.system.client.require_functions(writes=True)  # some benchmarks begin with a query
        yield servers


@contextmanager
def _named_redis(url: str) -> Iterator[None]:
    """Check that a server is empty, and leave it empty. Raise RefusedError if it is not."""
    where = address(url)
    with driver_errors(where), open_client(url) as client:
        if isinstance(client, RedisCluster):
            raise RefusedError(f"{where} is a cluster: benchmarks are for a single server")
        if client.info("keyspace"):
            raise _not_empty(where, "--redis-url")
        had_library = _has_library(client, where)
    try:
        yield
    finally:
        with suppress(ImError, RedisError), open_client(url) as client:
            _unlink_all(client)
            if not had_library:
                client.function_delete(_LIBRARY)


def _not_empty(where: str, option: str) -> RefusedError:
    return RefusedError(
        f"{where} holds data, and a benchmark slows down whoever uses it: name an empty one with {option}, "
        "or none for a throw-away one"
    )


def _has_library(client: redis.Redis, where: str) -> bool:
    if not client.function_list(library=_LIBRARY):
        return False
    call: Callable[..., Any] = client.execute_command
    version = call("FCALL_RO", "im_version", 0)
    if version != library.VERSION:
        raise RefusedError(
            f"{where} holds the functions of another imcore (version {version}, this is {library.VERSION}), "
            "and somebody may use them: a benchmark does not replace them"
        )
    return True


def _unlink_all(client: "redis.Redis | RedisCluster") -> None:
    with client.pipeline(transaction=False) as pipe:
        for key in client.scan_iter(match="im:*", count=1000):
            pipe.unlink(key)
        pipe.execute()


def _databases(things: ExitStack, settings: Settings, folder: Path, name: str) -> list[DatabaseMaker]:
    """Return what makes databases: the given kind alone, or PostgreSQL, where its wheel is, and SQLite."""
    makers: list[DatabaseMaker] = []
    if settings.database_url != Settings.from_env({}, data_dir=str(settings.data_dir)).database_url:
        makers.append(_named_database(settings.database_url, name))
    else:
        if installed := programs_folder():
            url = things.enter_context(running_postgres(folder / "postgres", installed))
            makers.append(PostgresSchemas(url, name))
        makers.append(SqliteFiles(folder, name))
    for maker in makers:
        things.callback(maker.drop_all)
    return makers


def _named_database(url: str, name: str) -> DatabaseMaker:
    with Database.connect(url) as database:  # refuses a URL of another kind
        where = database.address
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///")).absolute()
        maker: DatabaseMaker = SqliteFiles(path.parent, name)
        is_empty = not path.exists() or not path.stat().st_size
    else:
        maker = PostgresSchemas(url, name)
        is_empty = maker.is_empty()
    if not is_empty:
        raise _not_empty(where, "--database-url")
    return maker
