"""What `imcore.sql.database` needs of a kind of database: an engine, bulk writes, and its errors in our words."""

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Connection, Engine

from imcore.errors import ImError
from imcore.model.rows import Batch


class Backend(Protocol):
    """One kind of database at one address."""

    address: str
    """The address as people may see it: without a password."""
    engine: Engine
    driver_error: type[Exception]
    """What every error of the driver inherits from."""

    def create(self) -> None:
        """Make what must be there before a first connection. Again: nothing."""

    def examine(self, connection: Connection, *, writes: bool) -> None:
        """Raise ConfigurationError if our data cannot be kept there; for one who `writes`, DatabaseUnavailable too."""

    def remarks(self, connection: Connection) -> Sequence[str]:
        """Return what about the database breaks a promise, though it can be used: a line each."""

    def begin_writing(self, connection: Connection) -> None:
        """Make the transaction of `connection` one that writes, before it does anything else."""

    def committed(self, connection: Connection) -> None:
        """Raise DatabaseReplaced if what this connection has just committed is where nobody will find it."""

    def migrating(self, connection: Connection) -> None:
        """Keep other migrations out until the transaction of `connection`, which writes, ends."""

    def write(self, batch: Batch) -> None:
        """Write a folded batch in one transaction, again where that is what the database wants."""

    def note_withdrawn(self) -> None:
        """Know that a text was taken away: it may still be in the log."""

    def empty_log(self, *, always: bool = False) -> bool:
        """Empty the log if it may hold a text that was taken away, or `always`; return False if a reader is in the way.

        Call it again, as often as is wished: it waits a moment between two attempts.
        """

    def translate(self, error: Exception) -> ImError:
        """Return what an error of the driver means."""
