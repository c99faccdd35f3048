"""Databases that a benchmark makes for itself, as files or schemas, and removes at the end."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from imcore.errors import DatabaseUnavailable

SQLITE, POSTGRES = "SQLite", "PostgreSQL"


class DatabaseMaker(Protocol):
    """Makes empty databases of one kind."""

    kind: str

    def new(self) -> str:
        """Make an empty database and return its URL."""

    def bytes_of(self, url: str, table: str | None = None) -> int:
        """Return the bytes on disk of a database, or of a table in it, with indexes."""

    def version(self) -> str:
        """Return the version of the database program."""

    def drop_all(self) -> None:
        """Remove every database that was made here."""


class SqliteFiles:
    """Files in a folder, each with a name of its own."""

    kind = SQLITE

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._made: list[Path] = []

    def new(self) -> str:
        self._made.append(self._folder / f"{self._name}-{len(self._made)}.db")
        return f"sqlite:///{self._made[-1]}"

    def bytes_of(self, url: str, table: str | None = None) -> int:  # noqa: ARG002
        """Return the length of the file, once its log is in it; SQLite has no sizes of tables."""
        path = Path(url.removeprefix("sqlite:///"))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def drop_all(self) -> None:
        for path in self._made:
            for ending in ("", "-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)


class PostgresSchemas:
    """Schemas in one database, each with a name of its own."""

    kind = POSTGRES

    def __init__(self, url: str, name: str) -> None:
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
        query = """SELECT sum(pg_total_relation_size(oid)) FROM pg_class
            WHERE relkind = 'r' AND relnamespace = %s::regnamespace AND relname = COALESCE(%s::text, relname)"""
        with self._connect() as connection:
            row = connection.execute(query, [self._schema(url), table]).fetchone()
        return int(str(row[0])) if row and row[0] else 0

    def is_empty(self) -> bool:
        """Whether the database has no table but PostgreSQL's own."""
        query = """SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"""
        with self._connect() as connection:
            row = connection.execute(query).fetchone()
        return not (row and row[0])

    def version(self) -> str:
        with self._connect() as connection:
            return f"PostgreSQL {connection.info.parameter_status('server_version')}"

    def drop_all(self) -> None:
        """Drop the schemas, whoever is still in them."""
        with suppress(DatabaseUnavailable), self._connect() as connection:
            while self._made:
                schema = self._made.pop()
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))

    @staticmethod
    def _schema(url: str) -> str:
        return str(make_url(url).query["options"]).rpartition("=")[2]

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        try:
            return psycopg.connect(self._url.render_as_string(hide_password=False), autocommit=True, connect_timeout=10)
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"PostgreSQL cannot be used: {str(error).splitlines()[0]}") from error
