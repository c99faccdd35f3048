"""Looks for words in everything that Redis and SQL hold: each key, each value, each row, each byte of a file."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import text

from imcore import Chat
from imcore.sql.database import Database
from imcore.streams.server_info import primaries_of

_READS = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1),
    b"list": ("LRANGE", 0, -1),
    b"stream": ("XRANGE", "-", "+"),
}


def leaks(chat: Chat, words: Collection[str]) -> list[str]:
    """Return where one of the words is, with the beginning of what holds it."""
    found = [*_in_redis(chat, words), *_in_sql(chat.system.database, words)]
    return sorted(set(found))


def _in_redis(chat: Chat, words: Collection[str]) -> Iterator[str]:
    client: Any = chat.system.client.driver
    for _, node in primaries_of(client):
        compression = _uncompressed(node)
        try:
            for key in node.scan_iter(count=1000):
                yield from _in_key(node, key, words)
        finally:
            node.config_set("rdbcompression", compression)


def _uncompressed(node: Any) -> str:
    """Let DUMP hold values as they are; return the setting before."""
    before = node.config_get("rdbcompression")
    node.config_set("rdbcompression", "no")
    return str(next(value if isinstance(value, str) else value.decode() for value in before.values()))


def _in_key(node: Any, key: bytes, words: Collection[str]) -> Iterator[str]:
    kind = node.type(key)
    read = _READS[kind if isinstance(kind, bytes) else kind.encode()]
    values = [key, node.dump(key) or b"", repr(node.execute_command(read[0], key, *read[1:])).encode()]
    if read[0] == "XRANGE":
        values.append(repr(node.execute_command("XINFO", "STREAM", key, "FULL", "COUNT", 0)).encode())
    for word in words:
        forms = {word.encode(), repr(word.encode())[2:-1].encode()}  # as it is, and within a repr
        for value in values:
            if any(form in value for form in forms):
                yield f"Redis: {word!r} in {key!r}"


def _in_sql(database: Database, words: Collection[str]) -> Iterator[str]:
    database.empty_log(always=True)
    for table, row in _rows(database):
        line = repr([str(cell) for cell in row])
        for word in words:
            if any(word in str(cell) for cell in row):
                yield f"SQL: {word!r} in {table}: {line[:200]}"
    if database.dialect == "sqlite":
        path = Path(database.address.removeprefix("sqlite:///"))
        for file in path.parent.glob(f"{path.name}*"):
            raw = file.read_bytes()
            yield from (f"file: {word!r} in {file.name}" for word in words if word.encode() in raw)


def _rows(database: Database) -> Iterator[tuple[str, Any]]:
    names = {
        "sqlite": "SELECT name FROM sqlite_schema WHERE type = 'table'",
        "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()",
    }
    with database.connection() as connection:
        tables = [name for (name,) in connection.execute(text(names[database.dialect]))]
        for table in tables:
            for row in connection.execute(text(f'SELECT * FROM "{table}"')):
                yield table, row


def files_with(word: str, folder: Path) -> list[str]:
    """Return the files of a folder that hold a word."""
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and word.encode() in path.read_bytes():
                found.append(path.name)
    return sorted(found)
