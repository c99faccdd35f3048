"""What `imcore.sql.database` needs of a kind of database: an engine, bulk writes, and its errors in our words."""

from typing import Protocol

from sqlalchemy import Connection, Engine

from imcore.errors import ImError
from imcore.sql.rows import Batch


class Backend(Protocol):
    """One kind of database at one address."""

    address: str
    """The address as people may see it: without a password."""
    engine: Engine
    driver_error: type[Exception]
    """What every error of the driver inherits from."""

    def create(self) -> None:
        """Make what must be there before a first connection. Again: nothing."""

    def migrating(self, connection: Connection) -> None:
        """Keep other migrations out until the transaction of `connection` ends."""

    def write(self, batch: Batch) -> None:
        """Write a folded batch in one transaction, again where that is what the database wants."""

    def translate(self, error: Exception) -> ImError:
        """Return what an error of the driver means."""
