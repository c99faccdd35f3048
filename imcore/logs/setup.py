"""Configures the log of a process that runs in the foreground: a worker, `im up`, `im serve`.

    text  2026-12-01T11:35:00.123Z INFO persist: working as persist-1
    json  {"time": "2026-12-01T11:35:00.123Z", "level": "info", "process": "persist", "logger": ..., "message": ...}

A line of JSON is one whole object, in ASCII: no text can break it, or act on a terminal. A traceback is in `exception`.
"""

import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from imcore.logs.redaction import redact
from imcore.util import best_effort

log = logging.getLogger(__name__)

_CHATTY = ("alembic", "rq.worker", "rq.queue", "rq.job")
"""Loggers of others that describe each step."""


def install(form: str, level: str, process: str, stream: TextIO | None = None) -> None:
    """Let all loggers write to stderr, or this stream, in this form (text or json); the process is named in each line.

    `level` (debug, info, warning, error) is for imcore. Others log from info on, or from there: their debug lines may
    hold what users wrote. In JSON an error that ends the process or a thread is a line of the log, too.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(process) if form == "json" else TextLines(process))
    lowest = logging.getLevelNamesMapping()[level.upper()]
    handler.setLevel(lowest)  # a logger may have a level of its own
    logging.basicConfig(level=max(lowest, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("imcore").setLevel(lowest)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(max(lowest, logging.WARNING))
    if form == "json":
        best_effort.say_lost_lines(lambda count: _lost_lines(process, count))
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


class TextLines(logging.Formatter):
    """A line for people; a traceback follows on lines of its own. No password, no token."""

    converter = staticmethod(time.gmtime)

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03dZ %(levelname)s {process}: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonLines(logging.Formatter):
    """A JSON object. No password, no token."""

    converter = staticmethod(time.gmtime)

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        seconds = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = redact(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = redact(record.stack_info)
        return json.dumps(line)


def _lost_lines(process: str, count: int) -> str:
    text = "lines missing here: %d (nobody read them, or there was no room for them)"
    name = best_effort.__name__
    return JsonLines(process).format(logging.LogRecord(name, logging.WARNING, "", 0, text, (count,), None))


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("ended by an error that nobody has handled", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None:
        log.critical(
            "a thread has ended by an error that nobody has handled",
            exc_info=(uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback),
        )
