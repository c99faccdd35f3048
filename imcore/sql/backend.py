"""The interface of a kind of database: its engine, its bulk writes, and the meaning of its errors."""

# ruff: noqa: B027 (a step that a kind of database does not need does nothing)

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from imcore.errors import ImError
from imcore.model.rows import Batch


class Backend(ABC):
    """One database. A kind of database overrides the steps that it needs; by default they do nothing."""

    address: str
    """The URL as people may see it: without a password."""
    engine: Engine
    driver_error: type[Exception]

    def create(self) -> None:
        """Make what a first connection needs, if it is missing."""

    def examine(self, connection: Connection, *, writes: bool) -> None:
        """Raise ConfigurationError if the database cannot hold our data; for writers, DatabaseUnavailable too."""

    def remarks(self, connection: Connection) -> Sequence[str]:  # noqa: ARG002
        """Return a line for each setting of the server that breaks a promise, though the database can be used."""
        return ()

    def begin_writing(self, connection: Connection) -> None:
        """Prepare the transaction of `connection`, which has just begun, for writes."""

    def check_commit(self, connection: Connection) -> None:
        """Raise DatabaseReplaced if `connection` has committed to a file that is lost."""

    def lock_migrations(self, connection: Connection) -> None:
        """Keep other migrations out until the writing transaction of `connection` ends."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Write a merged batch in one transaction. Repeat it where the database asks for that."""

    def empty_log(self, *, always: bool = False) -> bool:  # noqa: ARG002
        """Empty the log if it may hold recalled texts, or `always`; return False if a reader prevents it."""
        return True

    @abstractmethod
    def translate(self, error: Exception) -> ImError:
        """Return the ImError for an error of the driver."""
