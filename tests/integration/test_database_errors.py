"""Errors of the database: each is an ImError that says what to do, and shows no password."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import psycopg
import psycopg.waiting
import pytest

from imcore.errors import ConfigurationError, DatabaseRejected, DatabaseUnavailable, ImError
from imcore.model.rows import Batch, GroupRow, MessageRow, MoveRow, SpanRow
from imcore.sql.database import Database

PASSWORD = "s3cret"
GOOD = MessageRow("g", 1 << 40, 1, "ann", 0, "good", None, None)
SPAN = SpanRow("g", "ann", 0, None, 1, 0)
BAD: dict[str, Batch] = {
    "surrogate": Batch(messages=[GOOD._replace(msgid=7, seq=2, content="\ud800")]),
    "no_content": Batch(messages=[GOOD._replace(msgid=7, seq=2, content=None)]),  # type: ignore[arg-type]
    "too_large": Batch(messages=[GOOD._replace(msgid=7, seq=1 << 63)]),
    "far_future": Batch(messages=[GOOD._replace(msgid=7, seq=2, sent_at_ms=1 << 60)]),
    "far_past": Batch(groups=[GroupRow("g", -(1 << 60))]),
    "surrogate_in_a_list": Batch(moves=[MoveRow("g", 7, 0, 1, ("\ud800",))]),
    "span": Batch(spans=[SpanRow("g", "ann", 0, None, 1 << 63, 0)]),
    "no_text": Batch(messages=[GOOD._replace(msgid=7, seq=2, content=object())]),  # type: ignore[arg-type]
}


class TestRejected:
    @pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
    def test_an_unstorable_row_rejects_the_whole_batch(self, database: Database, bad: Batch) -> None:
        database.write(Batch(messages=[GOOD]))
        bad = replace(bad, groups=[GroupRow("h", 1), *bad.groups])

        with pytest.raises(DatabaseRejected) as caught:
            database.write(bad)

        assert "\n" not in str(caught.value)
        assert caught.value.__cause__
        with database.connection() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM chat_groups").scalar() == 0
        database.write(Batch(groups=[GroupRow("h", 1)]))  # nothing is in the way afterwards

    def test_postgresql_rejects_nul(self, postgres_url: str) -> None:
        with Database.connect(postgres_url) as database:
            database.upgrade()
            with pytest.raises(DatabaseRejected):
                database.write(Batch(messages=[GOOD._replace(content="a\x00b")]))

    @pytest.mark.parametrize("copies", [True, False], ids=["copied", "inserted"])
    def test_postgresql_rejects_a_name_too_long_for_an_index(self, postgres_url: str, copies: bool) -> None:
        name = random.Random(7).randbytes(10_000).hex()  # so that it cannot be compressed
        with Database.connect(postgres_url) as database:
            database.upgrade()
            rows = Batch(messages=[GOOD._replace(gid=name)]) if copies else Batch(groups=[GroupRow(name, 1)])
            with pytest.raises(DatabaseRejected, match="maximum size"):
                database.write(rows)

    def test_a_rejected_row_is_rejected_again(self) -> None:
        assert not issubclass(DatabaseRejected, DatabaseUnavailable)


class TestUnavailable:
    def test_an_absent_server_is_unavailable(self) -> None:
        url = f"postgresql://ann:{PASSWORD}@127.0.0.1:1/chat"
        with Database.connect(url) as database, pytest.raises(DatabaseUnavailable) as caught:
            database.check_version()

        assert "postgresql://ann@127.0.0.1:1/chat" in str(caught.value)
        assert "IM_DATABASE_URL" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_absent_database_is_unavailable(self, postgres_url: str) -> None:
        with (
            Database.connect(postgres_url.replace("/test_", "/no_")) as database,
            pytest.raises(DatabaseUnavailable, match="does not exist"),
        ):
            database.write(Batch(groups=[GroupRow("g", 1)]))

    def test_a_server_without_free_connections_is_unavailable(self, sqlite_url: str) -> None:
        with Database.connect(sqlite_url) as database, ExitStack() as held:
            database.upgrade()
            database._backend.engine.pool._timeout = 0.01  # type: ignore[attr-defined]
            for _ in range(15):
                held.enter_context(database.connection())
            with pytest.raises(DatabaseUnavailable, match=r"no connection to sqlite:///.* is free"):
                held.enter_context(database.connection())

    def test_endless_deadlocks_are_an_error(self, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def deadlock(*_: object) -> None:
            raise psycopg.errors.DeadlockDetected("deadlock detected")

        monkeypatch.setattr("imcore.sql.postgres._copy", deadlock)
        monkeypatch.setattr("imcore.sql.postgres._insert", deadlock)
        with Database.connect(postgres_url) as database:
            database.upgrade()
            with pytest.raises(DatabaseUnavailable, match="deadlock detected"):
                database.write(Batch(messages=[GOOD]))


class Stop(BaseException):
    """The exception of a signal handler."""


def break_off(number: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> bool:
    """Break the action off in its wait of that number, as a signal does; return whether it has come so far."""
    waits = count()
    broken_off: list[int] = []
    waiting = psycopg.waiting.wait

    def wait(gen: Any, *args: Any, **kwargs: Any) -> Any:
        if next(waits) != number:
            return waiting(gen, *args, **kwargs)
        try:
            next(gen)  # it is asked, and has not answered
        except StopIteration as done:  # there was nothing to wait for
            return done.value
        broken_off.append(number)
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(psycopg.waiting, "wait", wait)
        with suppress(Stop):
            action()
            assert not broken_off
    return next(waits) > number


class TestBrokenOff:
    @pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
    @pytest.mark.parametrize(
        "action",
        [
            lambda database: database.messages_after("g", 0),
            lambda database: database.write(Batch(messages=[GOOD], groups=[GroupRow("g", 1)], spans=[SPAN])),
            lambda database: database.upgrade(),
        ],
        ids=["read", "write", "upgrade"],
    )
    def test_an_interruption_of_any_wait_is_raised(
        self,
        postgres_url: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        action: Callable[[Database], object],
        first: bool,
    ) -> None:
        with Database.connect(postgres_url) as prepared:
            prepared.upgrade()

        # When it is broken off wherever it waits for the server
        for number in count():
            with Database.connect(postgres_url) as database:
                if not first:
                    database.check_version()
                goes_on = break_off(number, monkeypatch, partial(action, database))

                # Then it stops, says nothing of that, and the next one finds a sound connection
                warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
                assert not [message for message in warnings if "fsync = off" not in message]
                action(database)
                assert len(database.messages_after("g", 0)) <= 1
            if not goes_on:
                break
        assert number > 2

    def test_an_error_during_an_interruption_is_an_error(self) -> None:
        with Database.connect("postgresql://127.0.0.1:1/chat") as database:
            try:
                raise Stop
            except Stop:
                with pytest.raises(DatabaseUnavailable):
                    database.check_version()


class TestUrls:
    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
    def test_postgresql_urls_have_several_forms(self, postgres_url: str, scheme: str) -> None:
        with Database.connect(postgres_url.replace("postgresql", scheme, 1)) as database:
            database.upgrade()

    @pytest.mark.parametrize(
        "url",
        [
            *("", "imcore.db", "sqlite://", "sqlite:///", "sqlite:///:memory:"),
            *("mysql://ann:s3cret@host/db", "ann:s3cret@host/db", "postgresql:ann:s3cret@host/db"),
        ],
    )
    def test_a_url_of_another_kind_is_refused(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="IM_DATABASE_URL") as caught:
            Database.connect(url)
        assert PASSWORD not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://ann:s3cret@127.0.0.1:1/chat",
            "postgresql://ann:@:1/chat?host=127.0.0.1&password=s3cret",
            "postgresql://ann:s3cret@127.0.0.1:1/chat?no_such_option=1",
            "postgresql://ann:s3cret@127.0.0.1:99999/chat",
            "postgresql://ann:s3cret@127.0.0.1:port/chat",
            "postgresql://ann:p@s3cret@127.0.0.1:1/chat",
            "postgresql://a/nn:s3cret@127.0.0.1:1/chat",
            "postgresql://ann:s3cret@[::1/chat",
            "postgresql:///ann:s3cret@127.0.0.1:1/chat",
        ],
    )
    def test_a_password_is_never_shown(self, url: str) -> None:
        said: list[str] = []

        with pytest.raises(ImError) as caught:
            connect_and_upgrade(url, said)

        said += [f"{error} {error!r}" for error in chain(caught.value)]
        assert PASSWORD not in str(said)

    def test_an_unknown_option_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="no_such_option"):
            Database.connect("postgresql://127.0.0.1:1/chat?no_such_option=1")


def connect_and_upgrade(url: str, said: list[str]) -> None:
    with Database.connect(url) as database:
        said += [repr(database), database.address]
        database.upgrade()


def chain(error: BaseException | None) -> Iterator[Any]:
    """The error, and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
