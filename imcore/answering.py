"""Answers what the parts that decide ask of Redis and of the database, one question after the other."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from imcore.asking import Ask, Asking, AskSql, Collect, Post, Question, answered
from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseUnavailable
from imcore.streams.keys import CONFIG
from imcore.streams.link import Link

if TYPE_CHECKING:
    from imcore.sql.database import Database

T = TypeVar("T")

OpenDatabase = Callable[[], "Database"]
"""Opens the database when it is first needed: most calls need Redis alone, and SQL's libraries take long to load."""


class Answering:
    """One link, and the database if there is one."""

    def __init__(self, link: Link, database: "OpenDatabase | Database | None") -> None:
        self.link = link
        self._given = database
        self._archive_since: int | None = None

    @cached_property
    def database_if_any(self) -> "Database | None":
        """The database, opened when it is first needed."""
        return self._given() if callable(self._given) else self._given

    @property
    def database(self) -> "Database":
        """The database. Raise DatabaseUnavailable where there is none."""
        if self.database_if_any is None:
            raise DatabaseUnavailable("this needs the database: give its URL")
        return self.database_if_any

    @property
    def archive(self) -> "Database":
        """The database, for what Redis has trimmed: it must be the one that has this data.

        Raise DatabaseNotReady or ConfigurationError if it is not, or what the database and the link raise.
        """
        if self._archive_since != self.database.changes:
            since = self.database.changes
            self._look_whose_it_is()
            self._archive_since = since
        return self.database

    def _look_whose_it_is(self) -> None:
        here, there = self.link.read("HGET", CONFIG, "dataset"), self.database.meta("dataset")
        where, redis = self.database.address, self.link.address
        if there is None:
            raise DatabaseNotReady(f"{where} holds nothing of this system yet: is IM_DATABASE_URL right?")
        if here is None:
            raise ConfigurationError(
                f"{redis} does not have the data that {where} has: set IM_DATABASE_URL or IM_REDIS_URL if one is "
                "wrong; if Redis has lost its data, run im rebuild"
            )
        if here.decode() != there:
            raise ConfigurationError(
                f"{where} holds the data of another system than {redis}: set IM_DATABASE_URL or IM_REDIS_URL"
            )

    def close(self) -> None:
        """Give the database's connections back."""
        if "database_if_any" in vars(self) and self.database_if_any:
            self.database_if_any.close()

    def run(self, asking: Asking[T]) -> T:
        """Return what comes of a part that decides. Raise what the link and the database raise, if it does not care."""
        return answered(asking, self.answer)

    def answer(self, question: Question) -> Any:
        """Return the answer to a question of Redis or the database."""
        match question:
            case Ask(calls):
                return self.link.gather(calls)
            case AskSql(query):
                return query(self.archive)
            case Post(calls):
                return self.link.post(calls)
            case Collect(posted):
                return posted()
        raise AssertionError(f"{question} is for somebody who listens")
