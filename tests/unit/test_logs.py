"""Lines of logs: their forms, and what never gets into them."""

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from imcore.logs import setup
from imcore.logs.redaction import redact
from imcore.util import best_effort

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlLW9mLWFubg"
ODD = "a\nb\r\x1b[31m\x00\u2028\u202e\udcff\U0001f600 {x} %s \"'\\"

log = logging.getLogger("imcore.test")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where the log goes; all that `install` changes is as before afterwards."""
    root, own = logging.getLogger(), logging.getLogger("imcore")
    handlers, levels = root.handlers.copy(), (root.level, own.level)
    for name in ("rq.worker", "rq.queue", "rq.job", "alembic"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(best_effort, "_lost_lines", best_effort._lost_lines)
    root.handlers.clear()
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    """The JSON objects, one for each line."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class TestText:
    def test_a_line_has_the_time_the_level_and_the_process(self, stream: io.StringIO) -> None:
        setup.install("text", "info", "persist", stream)
        log.warning("waiting: %s", "no Redis")
        time, _, rest = stream.getvalue().partition(" ")
        assert (len(time), time[-1], rest) == (
            len("2026-12-01T11:35:00.123Z"),
            "Z",
            "WARNING persist: waiting: no Redis\n",
        )

    def test_secrets_are_left_out_of_messages_and_tracebacks(self, stream: io.StringIO) -> None:
        setup.install("text", "info", "persist", stream)
        log_an_error_with_secrets()
        assert "hunter2" not in stream.getvalue()
        assert TOKEN not in stream.getvalue()
        assert stream.getvalue().count("***") >= 4


class TestJson:
    def test_any_text_makes_one_line_of_ascii_that_says_it(self, stream: io.StringIO) -> None:
        setup.install("json", "info", "persist", stream)
        log.info("said: %s", ODD)
        assert stream.getvalue().isascii()
        assert stream.getvalue().strip().isprintable()
        [line] = objects(stream)
        assert line.pop("time")[-5:-4] == "."
        assert line == {
            "level": "info",
            "process": "persist",
            "logger": "imcore.test",
            "message": f"said: {ODD}",
        }

    def test_a_traceback_is_within_the_line(self, stream: io.StringIO) -> None:
        setup.install("json", "info", "persist", stream)
        log_an_error_with_secrets()
        [line] = objects(stream)
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert "hunter2" not in stream.getvalue()
        assert TOKEN not in stream.getvalue()

    def test_an_error_that_ends_the_process_or_a_thread_is_a_line_too(self, stream: io.StringIO) -> None:
        setup.install("json", "info", "persist", stream)
        try:
            raise KeyError("lost")
        except KeyError as error:
            sys.excepthook(KeyError, error, error.__traceback__)
        thread = threading.Thread(target=lambda: {}["gone"])
        thread.start()
        thread.join()
        first, second = objects(stream)
        assert (first["level"], second["level"]) == ("critical", "critical")
        assert "KeyError: 'lost'" in first["exception"]
        assert "KeyError: 'gone'" in second["exception"]

    def test_the_notice_of_lost_lines_is_an_object_too(self, stream: io.StringIO) -> None:
        setup.install("json", "info", "persist", stream)
        line = json.loads(best_effort._lost_lines(12))
        assert (line["level"], line["process"]) == ("warning", "persist")
        assert line["message"].startswith("lines missing here: 12 ")


class TestLevels:
    @pytest.mark.parametrize(
        ("level", "own", "others"),
        [
            ("debug", ["debug", "info", "warning", "error"], ["info", "warning", "error"]),
            ("info", ["info", "warning", "error"], ["info", "warning", "error"]),
            ("warning", ["warning", "error"], ["warning", "error"]),
            ("error", ["error"], ["error"]),
        ],
    )
    def test_only_lines_of_that_level_and_above_are_written(
        self, stream: io.StringIO, level: str, own: list[str], others: list[str]
    ) -> None:
        setup.install("json", level, "persist", stream)
        for name in ("imcore.test", "others", "sqlalchemy.engine"):
            for each in ("debug", "info", "warning", "error"):
                getattr(logging.getLogger(name), each)("text")
        said = [(line["logger"], line["level"]) for line in objects(stream)]
        assert [each for name, each in said if name == "imcore.test"] == own
        assert [each for name, each in said if name == "others"] == others
        assert {"warning", "error"} & set(own) == {each for name, each in said if name == "sqlalchemy.engine"}

    def test_those_who_describe_each_step_are_heard_from_warnings_on(self, stream: io.StringIO) -> None:
        setup.install("json", "debug", "jobs", stream)
        logging.getLogger("rq.worker").info("listening")
        logging.getLogger("rq.worker").warning("trouble")
        assert [line["message"] for line in objects(stream)] == ["trouble"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer ***"),
        ("authorization: bearer 0123456789abcdef0123", "authorization: bearer ***"),
        (f"http://127.0.0.1:8080/#token={TOKEN}", "http://127.0.0.1:8080/#token=***"),
        (f'{{"token": "{TOKEN}"}}', '{"token": "***"}'),
        ("no bearer of news", "no bearer of news"),
        ("eyJust a word", "eyJust a word"),
    ],
)
def test_tokens_are_left_out(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def log_an_error_with_secrets() -> None:
    try:
        raise ValueError(f"redis://ann:hunter2@host and {TOKEN}")
    except ValueError:
        log.exception("at %s with %s", "postgresql://ann:hunter2@host/db", f"Bearer {TOKEN}")
