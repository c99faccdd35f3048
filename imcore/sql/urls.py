"""Which kind of database a URL names."""

import re
from pathlib import Path

from imcore.errors import ConfigurationError
from imcore.sql.backend import Backend
from imcore.sql.sqlite import SqliteBackend

_SQLITE = "sqlite:///"
_POSTGRES = {"postgresql", "postgres", "postgresql+psycopg"}
_OPTION = re.compile(r"\?([A-Za-z_]+)=[^/]*$")
"""What would be an option in any other URL. A path may have a `?` in it, but hardly this at its end."""


def backend_of(url: str, data_dir: Path | None) -> Backend:
    """Return what works on the database at a URL, without any I/O yet. Raise ConfigurationError for another kind."""
    scheme, separator, _ = url.partition("://")
    if url.startswith(_SQLITE):
        # Taken as it stands, not as a URL: a path may hold any character.
        return SqliteBackend(_sqlite_path(url.removeprefix(_SQLITE)), data_dir)
    if scheme in _POSTGRES:
        from imcore.sql.postgres import PostgresBackend  # noqa: PLC0415 (psycopg is loaded where it is used)

        return PostgresBackend(url)
    # Without a scheme it may be anything, and is not shown.
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
