"""Answers what the parts that decide ask of Redis and of the database, one question after the other."""

from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from imcore.asking import Ask, Asking, AskSql, Collect, Post, Question, answered
from imcore.errors import ConfigurationError, DatabaseNotReady, DatabaseOpening, DatabaseUnavailable
from imcore.streams.keys import CONFIG
from imcore.streams.link import Link

if TYPE_CHECKING:
    from imcore.sql.database import Database

T = TypeVar("T")

OpenDatabase = Callable[[], "Database"]
"""Opens the database when it is first needed: most calls need Redis alone, and SQL's libraries take long to load."""


_CLOSING_S = 1.0
"""For how long `close` waits for a database that is being opened. One that is silent is left alone."""


class Answering:
    """One link, and the database if there is one."""

    def __init__(self, link: Link, database: "OpenDatabase | Database | None") -> None:
        self.link = link
        self._given = database
        self._lock = Lock()
        self._opening: _Opening | None = None
        self._archive_since: int | None = None

    @property
    def database_if_any(self) -> "Database | None":
        """The database, opened when it is first needed."""
        with self._lock:
            if callable(self._given):
                self._given = self._given()
            return self._given

    def open_early(self) -> None:
        """Begin to open the database in the background, the first time that this is called. Raise nothing.

        Loading SQL's libraries and connecting take half a second: too long in the midst of live traffic. Meanwhile
        `answer` raises DatabaseOpening. What goes wrong is raised when the database is next asked something.
        """
        if self._given is not None and self._opening is None:
            opening = _Opening(self)
            with suppress(RuntimeError):  # this process has as many threads as it may
                opening.start()
                self._opening = opening

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
        opening, self._opening = self._opening, None
        if opening and not opening.abandon(_CLOSING_S):
            return
        if self._given is not None and not callable(self._given):
            self._given.close()

    def run(self, asking: Asking[T]) -> T:
        """Return what comes of a part that decides. Raise what the link and the database raise, if it does not care."""
        return answered(asking, self._answer_in_turn)

    def _answer_in_turn(self, question: Question) -> Any:
        if isinstance(question, AskSql) and self._opening:
            self._opening.join()  # nobody else waits for this one
        return self.answer(question)

    def answer(self, question: Question) -> Any:
        """Return the answer to a question of Redis or the database. Raise DatabaseOpening while it is being opened."""
        match question:
            case Ask(calls):
                return self.link.gather(calls)
            case AskSql(query):
                if self._opening and self._opening.is_alive():
                    raise DatabaseOpening
                return query(self.archive)
            case Post(calls):
                return self.link.post(calls)
            case Collect(posted):
                return posted()
        raise AssertionError(f"{question} is for somebody who listens")


class _Opening(Thread):
    """Opens the database. It asks the database alone: the link is for its own thread."""

    def __init__(self, answering: Answering) -> None:
        super().__init__(name="imcore-opens-database", daemon=True)  # whoever exits does not wait for a silent one
        self._answering = answering
        self._abandoned = Event()

    def run(self) -> None:
        with suppress(Exception):  # whoever asks next meets it again
            self._open(self._answering.database)

    def _open(self, database: "Database") -> None:
        try:
            if not self._abandoned.is_set():
                database.meta("dataset")  # connects, and looks whether the database can hold our data
        finally:
            if self._abandoned.is_set():
                database.close()

    def abandon(self, patience_s: float) -> bool:
        """Nobody wants it any more: return whether it has ended. If not, it closes the database once it has."""
        self._abandoned.set()
        self.join(patience_s)
        return not self.is_alive()
