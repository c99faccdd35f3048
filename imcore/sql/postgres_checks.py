"""Checks of a PostgreSQL database, and the meaning of its errors: each in one line that says what to do."""

from typing import Any

import psycopg
from psycopg import errors
from sqlalchemy import Connection, Row, func, select, text

from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseRejected, DatabaseUnavailable, ImError
from imcore.sql.migrations import VERSION_TABLE

OLDEST = 110_000
"""PostgreSQL 11: an index needs its hashtextextended."""

_TABLES = (
    *(
        "bookmarks",
        "chat_groups",
        "deleted_groups",
        "erasures",
        "group_msgs",
        "group_spans",
        "offset_moves",
        "user_settings",
    ),
    "imcore_meta",
)
_NEEDED = {"SELECT": (*_TABLES, VERSION_TABLE), "INSERT": _TABLES, "UPDATE": _TABLES, "DELETE": _TABLES}
"""The rights that a writer needs, with their tables."""

_RIGHTS = ", ".join(f"('{right}', '{table}')" for right, tables in _NEEDED.items() for table in tables)
_FACTS = text(
    f"""
    SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding,
      pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only') = 'on' AS is_read_only,
      current_user AS role, current_schema() AS schema, to_regclass('{VERSION_TABLE}') IS NOT NULL AS has_tables,
      has_schema_privilege(current_schema(), 'CREATE') AS may_create,
      (SELECT string_agg(needed.right_name || ' on ' || needed.table_name, ', ')
       FROM (VALUES {_RIGHTS}) AS needed (right_name, table_name)
       WHERE NOT has_table_privilege(to_regclass(needed.table_name), needed.right_name)) AS missing
    """  # noqa: S608 (our own names)
)

_DURABLE = ("fsync", "full_page_writes")
"""Without these a commit is not on the disk, whatever the session sets."""

_ROW_ERRORS = {"22", "23", "54"}
"""Classes of errors of a row: bad data, broken constraints, limits like the length of an index row."""

_REFUSALS: dict[type[psycopg.Error], str] = {
    errors.LockNotAvailable: (
        "the database {address} cannot be used now: somebody has had a lock on it for too long (see pg_locks and "
        "pg_stat_activity)"
    ),
    errors.ReadOnlySqlTransaction: (
        "the database {address} takes no writes ({reason}): set IM_DATABASE_URL to the primary if this is a standby, "
        "or default_transaction_read_only = off"
    ),
    errors.QueryCanceled: (
        "the database {address} has broken a statement off ({reason}): where a limit of the role or the database did "
        "that, ALTER ROLE name SET statement_timeout = 0"
    ),
    errors.IdleInTransactionSessionTimeout: (
        "the database {address} has ended the connection ({reason}): ALTER ROLE name SET "
        "idle_in_transaction_session_timeout = 0"
    ),
}
"""The texts for refusals of a running server: a repetition can succeed."""


def examine(connection: Connection, address: str, *, writes: bool) -> None:
    """Raise ConfigurationError if the database cannot hold our data, or if a writer lacks a right.

    Raise DatabaseUnavailable for a writer on a standby, which may be promoted.
    """
    facts = connection.execute(_FACTS).one()
    if facts.version < OLDEST:
        raise ConfigurationError(
            f"the database {address} is on PostgreSQL {facts.version // 10_000}, and imcore needs {OLDEST // 10_000} "
            "or newer: set IM_DATABASE_URL to a newer server"
        )
    if facts.encoding != "UTF8":
        raise ConfigurationError(
            f"the database {address} has the encoding {facts.encoding}, and imcore needs UTF8: make another one "
            "(CREATE DATABASE name ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0), and set "
            "IM_DATABASE_URL to it"
        )
    if writes:
        _examine_rights(facts, address)


def remarks(connection: Connection, address: str) -> list[str]:
    """Return a line for each setting of the server that breaks a promise, with its effect and the remedy."""
    off = [f"{name} = off" for name in _DURABLE if connection.scalar(select(func.current_setting(name))) == "off"]
    if not off:
        return []
    names = " and ".join(off)
    return [f"the server of {address} has {names}, so a power cut can destroy all that is stored: set both on there"]


def _examine_rights(facts: Row[Any], address: str) -> None:
    if facts.is_standby:
        raise DatabaseUnavailable(
            f"the database {address} is a standby, which takes no writes: set IM_DATABASE_URL to the primary, or wait "
            "until it is promoted"
        )
    if facts.is_read_only:
        raise ConfigurationError(
            f"the database {address} takes no writes from the role {facts.role} (default_transaction_read_only): ALTER "
            f"ROLE {facts.role} SET default_transaction_read_only = off, or the same for the database"
        )
    if facts.schema is None:
        raise ConfigurationError(
            f"the role {facts.role} may not use any schema of its search_path in {address}: GRANT USAGE, CREATE ON "
            f"SCHEMA name TO {facts.role}"
        )
    if not facts.has_tables and not facts.may_create:
        raise ConfigurationError(
            f"the role {facts.role} may not create tables in the schema {facts.schema} of {address}: GRANT CREATE ON "
            f"SCHEMA {facts.schema} TO {facts.role}, or run im db upgrade as the owner"
        )
    if facts.has_tables and facts.missing:
        raise ConfigurationError(
            f"the role {facts.role} lacks rights in {address}: GRANT it {facts.missing}, or use the owner of the tables"
        )


def translate(error: Exception, address: str) -> ImError:
    state = getattr(error, "sqlstate", None) or ""
    reason = str(error).partition("\n")[0]  # the other lines may quote rows
    if state[:2] in _ROW_ERRORS or isinstance(error, psycopg.DataError):
        return DatabaseRejected(f"the database refused a row: {reason}")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn):
        return DatabaseNotReady(f"the database {address} has not the tables of imcore: run im db upgrade")
    if refusal := _refusal(error, reason, address):
        return refusal
    if isinstance(error, psycopg.ProgrammingError):
        return ConfigurationError(f"cannot use the database {address} ({reason}): set IM_DATABASE_URL")
    return DatabaseUnavailable(
        f"the database {address} cannot be used now ({reason}): see that it runs, or set IM_DATABASE_URL"
    )


def _refusal(error: Exception, reason: str, address: str) -> ImError | None:
    """Return the error for a refusal of a running server, None for any other error."""
    for kind, line in _REFUSALS.items():
        if isinstance(error, kind):
            return DatabaseUnavailable(line.format(address=address, reason=reason))
    if isinstance(error, errors.InsufficientPrivilege):
        return ConfigurationError(
            f"the role lacks a right in the database {address} ({reason}): GRANT it, or use the owner of the tables"
        )
    if "statement pooling" in reason:
        return ConfigurationError(
            f"the pooler at {address} allows no transactions (pool_mode=statement): set pool_mode to transaction"
        )
    if "unsupported startup parameter" in reason:
        return ConfigurationError(
            f"the pooler at {address} does not pass an option on ({reason.rpartition('FATAL:')[2].strip()}): leave it "
            "out of IM_DATABASE_URL and the PG* variables, or name it in its ignore_startup_parameters"
        )
    return None
