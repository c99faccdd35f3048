"""What a benchmark runs on: a throw-away server and database, or a part of its own on those that were given.

On a given Redis that is a database number which is empty, on PostgreSQL a schema, beside a SQLite file another file.
Nothing of anybody else's is read or written, and all of it is removed at the end, however that comes.
"""

import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError, ResponseError

from imcore.chat import Chat
from imcore.cli.bench.postgres import programs_folder, running_postgres
from imcore.cli.bench.sql import BenchDatabase, PostgresPlace, SqlitePlace
from imcore.embedded.server import EmbeddedServer
from imcore.errors import ImError, RefusedError, TryAgain
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams import library
from imcore.streams.calls import group_calls
from imcore.streams.client import open_client
from imcore.streams.redis_errors import address, driver_errors, translated

CLAIM = "im:bench"
"""Marks a database number as taken, for other benchmarks that look for one."""

Allow = Callable[[str], None]
"""Called with a reason not to go on; raises RefusedError if that has the last word."""

_OURS = "im:*"
_LIBRARY = "imcore"
_CLAIM_S = 24 * 60 * 60
_DATABASES = 16
"""How many numbers a server has, unless it was told otherwise."""


@dataclass(frozen=True, slots=True)
class Stack:
    """What is there to be measured. `name` begins every gid and uid; `places` are the databases, the main one first."""

    name: str
    settings: Settings
    places: Sequence[BenchDatabase]

    @property
    def place(self) -> BenchDatabase:
        """The main kind of database."""
        return self.places[0]

    def using(
        self, database_url: str, *, receipt_window_ms: int | None = None, heartbeat_ms: int | None = None
    ) -> "Stack":
        """Return the same with a database that was made here, and with other settings where they are given."""
        settings = replace(
            self.settings,
            database_url=database_url,
            receipt_window_ms=self.settings.receipt_window_ms if receipt_window_ms is None else receipt_window_ms,
            heartbeat_ms=heartbeat_ms or self.settings.heartbeat_ms,
        )
        return replace(self, settings=settings)

    def tables(self, place: BenchDatabase | None = None) -> str:
        """Make a database with the tables of imcore, for what Redis has now; return its URL. It goes with the stack."""
        url = (place or self.place).new()
        with Database.connect(url) as database, self.chat() as chat:
            database.upgrade()
            partitions, dataset = chat.system.client.call(
                group_calls.init(chat.system.client.space.partitions, uuid.uuid4().hex)
            )
            database.bind(partitions, dataset)
        return url

    def clear(self) -> None:
        """Remove what a benchmark has left in Redis, so that the next one begins as if it were the first."""
        with driver_errors(address(self.settings.redis_url)), open_client(self.settings.redis_url) as client:
            _unlink(client)

    def chat(self) -> Chat:
        """Return a Chat of its own connections."""
        return Chat.connect(settings=self.settings)


@contextmanager
def open_stack(settings: Settings, allow: Allow) -> Iterator[Stack]:
    """Make a stack for these settings. Raise what `allow` raises, and RefusedError where it cannot keep to itself."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="im-bench-")))
        redis_url = stack.enter_context(_redis(settings, folder, allow))
        places = _places(stack, settings, folder, name, allow)
        own = replace(settings, redis_url=redis_url, jobs_redis_url=redis_url, data_dir=folder, partitions=None)
        made = Stack(name, own, places)
        with made.chat() as chat:
            chat.system.client.require_functions(writes=True)  # some begin by reading
        yield made


def _redis(settings: Settings, folder: Path, allow: Allow) -> Any:
    return _embedded(folder / "redis") if settings.embedded else _own_database(settings.redis_url, allow)


@contextmanager
def _embedded(folder: Path) -> Iterator[str]:
    with EmbeddedServer(folder) as server:
        yield server.url


@contextmanager
def _own_database(url: str, allow: Allow) -> Iterator[str]:
    """Claim an empty database number of a server that was given. Raise RefusedError if that cannot be, or TryAgain."""
    where = address(url)
    with driver_errors(where), open_client(url) as client:
        if isinstance(client, RedisCluster):
            raise RefusedError(f"{where} is a cluster: benchmarks are for a single server")
        had_library = _has_library(client, where)
        if client.info("keyspace"):
            allow(f"{where} holds data, and a benchmark slows down whoever uses it")
        own_url = _claim(client, url, where)
    try:
        yield own_url
    finally:
        _clear(own_url, drop_library=not had_library)


def _has_library(client: redis.Redis, where: str) -> bool:
    """Return whether the server has our functions. Raise RefusedError where the benchmark would replace others."""
    if not client.function_list(library=_LIBRARY):
        return False
    call: Callable[..., Any] = client.execute_command
    loaded = call("FCALL_RO", "im_version", 0)
    if loaded != library.VERSION:
        raise RefusedError(
            f"{where} holds the functions of another imcore (version {loaded}, this is {library.VERSION}), "
            "and somebody may use them: a benchmark does not replace them"
        )
    return True


def _claim(client: redis.Redis, url: str, where: str) -> str:
    first = int(client.connection_pool.connection_kwargs.get("db") or 0)
    numbers = [first, *(number for number in reversed(range(_DATABASES)) if number != first)]
    for number in numbers:
        own_url = with_number(url, number)
        try:
            with open_client(own_url) as own:
                if not own.dbsize() and own.set(CLAIM, 1, nx=True, ex=_CLAIM_S):
                    if own.dbsize() == 1:
                        return own_url
                    own.delete(CLAIM)
        except ResponseError as error:
            if isinstance(translated(error, where), TryAgain):  # it is not the number: memory is full, for one
                raise
    raise RefusedError(f"{where} has no database number that is empty: a benchmark needs one")


def with_number(url: str, number: int) -> str:
    """Return the URL of another database number of the same server."""
    parts = urlsplit(url)
    others = [part for part in parts.query.split("&") if part and not part.startswith("db=")]
    path = parts.path if parts.scheme == "unix" else ""  # elsewhere the path is a number, too
    return f"{parts.scheme}://{parts.netloc}{path}?{'&'.join([*others, f'db={number}'])}"


def _clear(url: str, *, drop_library: bool) -> None:
    """Remove our keys, and the functions if they had not been there."""
    with suppress(ImError, RedisError), open_client(url) as client:
        _unlink(client)
        client.delete(CLAIM)
        if drop_library:
            client.function_delete(_LIBRARY)


def _unlink(client: "redis.Redis | RedisCluster") -> None:
    with client.pipeline(transaction=False) as pipe:
        for key in client.scan_iter(match=_OURS, count=1000):
            if key != CLAIM.encode():
                pipe.unlink(key)
        pipe.execute()


def _places(stack: ExitStack, settings: Settings, folder: Path, name: str, allow: Allow) -> list[BenchDatabase]:
    """Return the databases: the given kind alone, or PostgreSQL, where its wheel is, and SQLite."""
    default = Settings.from_env({}, data_dir=str(settings.data_dir)).database_url
    if settings.database_url != default:
        return [_given_place(stack, settings.database_url, name, allow)]
    places: list[BenchDatabase] = [_until_closed(stack, SqlitePlace(folder, name))]
    if installed := programs_folder():
        url = stack.enter_context(running_postgres(folder / "postgres", installed))
        places.insert(0, _until_closed(stack, PostgresPlace(url, name)))
    return places


def _given_place(stack: ExitStack, url: str, name: str, allow: Allow) -> BenchDatabase:
    with Database.connect(url) as database:  # refuses a URL of another kind
        where = database.address
    if url.startswith("sqlite:///"):
        return _until_closed(stack, SqlitePlace(Path(url.removeprefix("sqlite:///")).absolute().parent, name))
    place = PostgresPlace(url, name)
    if place.holds_data():
        allow(f"{where} holds data, and a benchmark slows down whoever uses it")
    return _until_closed(stack, place)


def _until_closed(stack: ExitStack, place: BenchDatabase) -> BenchDatabase:
    stack.callback(place.drop_all)
    return place
