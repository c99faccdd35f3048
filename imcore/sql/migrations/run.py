"""Runs the migrations from code: there is no alembic.ini."""

from threading import Lock

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from imcore.sql.migrations import HEAD

_ONE_AT_A_TIME = Lock()
"""Alembic keeps the migration that runs in a global."""


def upgrade(connection: Connection, revision: str = HEAD) -> None:
    with _ONE_AT_A_TIME:
        command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    with _ONE_AT_A_TIME:
        command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "imcore.sql:migrations")
    return config
