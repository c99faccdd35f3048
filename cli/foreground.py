"""The log of a command that runs in the foreground with programs of its own: for people, or as JSON lines."""

import json
import logging
import sys
from collections.abc import Iterable

from imcore.cli import output
from imcore.cli.app import Invocation
from imcore.cli.names import in_sentence
from imcore.logs import setup
from imcore.model.records import Record
from imcore.settings import Settings
from imcore.util import best_effort


class TextLog:
    """Writes to stdout, with --json to stderr. All of it is best-effort but for records."""

    def __init__(self, run: Invocation, level: str, programs: Iterable[str]) -> None:
        """`programs` are the names of all programs whose lines will be passed on."""
        self._run = run
        self._is_quiet = level in {"warning", "error"}
        self._width = max(map(len, programs))

    def record(self, record: Record) -> None:
        """Write a record to stdout if --json was given."""
        if self._run.json:
            self._run.show([record], ())
            output.flush()

    def info(self, *lines: str) -> None:
        if not self._is_quiet:
            self._write(*output.fitted(sys.stdout, *(f"im: {line}" for line in lines)))

    def warning(self, text: str) -> None:
        output.complain(text)

    def error(self, text: str) -> None:
        """Write why the command fails."""
        output.complain(text)

    def pass_on(self, name: str, line: str) -> None:
        """Write a line of a program."""
        shown = f"{name:{self._width}} | {in_sentence(line)}"
        self._write(*output.fitted(sys.stdout, shown, hang=self._width + len(" | ")))

    def _write(self, *lines: str) -> None:
        write = output.remark if self._run.json else output.report
        write(*lines)


class JsonLog(TextLog):
    """Writes JSON lines, and nothing else but records."""

    def __init__(self, run: Invocation, level: str, programs: Iterable[str]) -> None:
        super().__init__(run, level, programs)
        self._stream = sys.stderr if run.json else best_effort.over(sys.stdout)
        self._log = logging.getLogger(__name__)
        setup.install("json", level, "up", self._stream)

    def info(self, *lines: str) -> None:
        for line in lines:
            self._log.info("%s", line)

    def warning(self, text: str) -> None:
        self._log.warning("%s", text)

    def error(self, text: str) -> None:
        self._log.error("%s", text)

    def pass_on(self, name: str, line: str) -> None:
        if _is_object(line):
            print(line, file=self._stream, flush=True)
        else:  # the interpreter's own words
            self._log.warning("%s: %s", name, line)


def log_of(run: Invocation, settings: Settings, programs: Iterable[str]) -> TextLog:
    """Return the log that the settings ask for."""
    kind = JsonLog if settings.log_format == "json" else TextLog
    return kind(run, settings.log_level, programs)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
