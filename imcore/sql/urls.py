"""Database URLs: the kind of database that each names."""

import re
from pathlib import Path

from imcore.errors import ConfigurationError
from imcore.sql.backend import Backend
from imcore.sql.sqlite import SqliteBackend

_SQLITE = "sqlite:///"
_POSTGRES = {"postgresql", "postgres", "postgresql+psycopg"}
_OPTION = re.compile(r"\?([A-Za-z_]+)=[^/]*$")
"""Looks like an option at the end of a URL. A path may contain `?`, but hardly this at its end."""


def backend_of(url: str, data_dir: Path | None) -> Backend:
    """Return the backend for a URL, without any I/O. Raise ConfigurationError for a database of another kind."""
    scheme, separator, _ = url.partition("://")
    if url.startswith(_SQLITE):
        # The path is not decoded as a URL: it may contain any character.
        return SqliteBackend(_sqlite_path(url.removeprefix(_SQLITE)), data_dir)
    if scheme in _POSTGRES:
        from imcore.sql.postgres import PostgresBackend  # noqa: PLC0415 (psycopg is loaded where it is used)

        return PostgresBackend(url)
    # Without a scheme it may be a secret, and is not shown.
    kind = f"{scheme}://" if separator else "a URL without a scheme"
    raise ConfigurationError(f"{kind} is no database of ours: set IM_DATABASE_URL to {_SQLITE}PATH or postgresql://...")


def _sqlite_path(path: str) -> Path:
    if path in {"", ":memory:"}:
        raise ConfigurationError(f"a database must be a file: set IM_DATABASE_URL to {_SQLITE}PATH")
    if option := _OPTION.search(path):
        raise ConfigurationError(
            f"a SQLite database takes no options: leave ?{option[1]}=... out of IM_DATABASE_URL, which is {_SQLITE}PATH"
        )
    return Path(path)
