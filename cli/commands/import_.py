"""Replaying a file of chat events."""

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

import click

from cli import output
from cli.options import Invocation, command, standard_input
from cli.progress import Progress, progress
from imcore.errors import InvalidInput

_COLUMNS = ("messages", "joins", "leaves", "acks", "errors")


@command("import", example="im import chat.jsonl\nzcat chat.jsonl.gz | im import -")
@click.argument("file")
def import_(run: Invocation, file: str) -> None:
    """Replay a file of chat events.

    FILE has one JSON object a line; `-` reads stdin. A line that is not valid is reported and passed over. The same
    file again adds no message, and one that was interrupted goes on where it ended; who has come or gone since is a
    member again, or is none, as the file ends. A message needs a client_msgid, and may have a "time" (ISO 8601), which
    SQL keeps as its sent_at; other keys are ignored:

    \b
    {"type": "message", "gid": "team", "uid": "ann", "content": "Hi", "client_msgid": "17"}
    {"type": "join", "gid": "team", "uid": "bob"}
    {"type": "leave", "gid": "team", "uid": "bob"}
    {"type": "rename", "gid": "team", "uid": "bob", "new_uid": "rob"}
    {"type": "ack", "gid": "team", "uid": "rob", "client_msgid": "17"}

    An ack confirms all up to the message that carries its client_msgid. Who sends or acks and is no member joins first;
    the first event of a group makes it.
    """
    from imcore.importer import import_events  # noqa: PLC0415 (the help need not wait for the drivers)

    with _opened(file) as source, run.chat() as chat, progress("bytes") as shown:
        read = _Read(_size(source), shown)
        summary = import_events(
            chat,
            _lines(source, file),
            on_error=lambda number, reason: shown.complain(f"line {number}: {reason}"),
            on_progress=read.advance,
        )
    run.show([{name: getattr(summary, name) for name in _COLUMNS}], _COLUMNS)
    if summary.errors:
        click.get_current_context().exit(output.FAILED)


class _Read:
    """How many bytes are read, of how many."""

    def __init__(self, total: int | None, shown: Progress) -> None:
        self._done = 0
        self._total = total
        self._shown = shown
        self.advance(0)

    def advance(self, count: int) -> None:
        """So many more are read."""
        self._done += count
        self._shown.to(self._done, self._total)


def _opened(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        return nullcontext(standard_input())
    try:
        return open(file, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(file, error) from error


def _lines(source: BinaryIO, file: str) -> Iterator[bytes]:
    try:
        yield from source
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: str, error: Exception) -> InvalidInput:
    return InvalidInput(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}")


def _size(source: BinaryIO) -> int | None:
    try:
        found = os.fstat(source.fileno())
    except OSError:  # not a file of the system's
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
