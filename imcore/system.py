"""The two stores and the settings: what everything above Redis and SQL is handed."""

import reprlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Self

from imcore.errors import ConfigurationError, DatabaseUnavailable
from imcore.settings import Settings
from imcore.streams.client import RedisClient

if TYPE_CHECKING:
    from imcore.sql.database import Database

OpenDatabase = Callable[[], "Database"]
"""Opens the database when it is first needed: most calls need Redis alone, and SQL's libraries take long to load."""


class System:
    """A client of Redis, the database if there is one, and the settings."""

    def __init__(
        self, client: RedisClient, database: "OpenDatabase | Database | None", settings: Settings | None = None
    ) -> None:
        self.client = client
        self.settings = settings or Settings.from_env()
        self._database = database
        self._lock = Lock()

    @classmethod
    def connect(
        cls, redis_url: str | None = None, database_url: str | None = None, *, settings: Settings | None = None
    ) -> Self:
        """Return the system at these URLs. See `imcore.Chat.connect`."""
        for url in (redis_url, database_url):
            if not isinstance(url, str | None):
                raise ConfigurationError(f"a URL must be a text; it is {reprlib.repr(url)}")
        settings = settings or Settings.from_env()
        settings = replace(
            settings, redis_url=redis_url or settings.redis_url, database_url=database_url or settings.database_url
        )
        return cls(RedisClient.connect(settings), partial(_open_database, settings), settings)

    @property
    def has_database(self) -> bool:
        """Whether there is a database, opened or not."""
        return self._database is not None

    @property
    def database(self) -> "Database":
        """The database, opened when it is first needed. Raise DatabaseUnavailable without a URL."""
        with self._lock:
            if callable(self._database):
                self._database = self._database()
            if self._database is None:
                raise DatabaseUnavailable("this needs the database: give its URL")
            return self._database

    def close(self) -> None:
        self.client.close()
        self.close_database()

    def close_database(self) -> None:
        if self._database is not None and not callable(self._database):
            self._database.close()


def _open_database(settings: Settings) -> "Database":
    from imcore.sql.database import Database  # noqa: PLC0415 (it takes longer to load than most calls take)

    return Database.connect(settings.database_url, data_dir=settings.data_dir)
