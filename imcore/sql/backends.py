"""The kind of database that a URL names."""

from pathlib import Path

from imcore.errors import ConfigurationError
from imcore.sql.backend import Backend
from imcore.sql.sqlite import SCHEME, SqliteBackend, path_of

_POSTGRES = {"postgresql", "postgres", "postgresql+psycopg"}


def backend_of(url: str, data_dir: Path | None) -> Backend:
    """Raise ConfigurationError for a URL of no database of ours."""
    scheme, separator, _ = url.partition("://")
    if url.startswith(SCHEME):
        return SqliteBackend(path_of(url), data_dir)
    if scheme in _POSTGRES:
        from imcore.sql.postgres import PostgresBackend  # noqa: PLC0415 (psycopg is loaded where it is used)

        return PostgresBackend(url)
    # Without a scheme it may be a secret, and is not shown.
    kind = f"{scheme}://" if separator else "a URL without a scheme"
    raise ConfigurationError(f"{kind} is no database of ours: set IM_DATABASE_URL to {SCHEME}PATH or postgresql://...")
