"""Writes to the terminal or the pipe: no text that people typed can colour, clear or move a terminal.

Records (`show`, `say`) are the answer of a command: a failed write raises OutputError. All other text (`remark`,
`complain`, `report`) is best-effort: it may get lost, which changes nothing (see `imcore.util.best_effort`).
"""

import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from itertools import chain, islice
from typing import TYPE_CHECKING, NoReturn, TextIO

from imcore.cli import tables
from imcore.cli.names import ACTING, EMOJI, in_one_line, in_sentence
from imcore.cli.terminal import fit, width_of
from imcore.errors import ImError
from imcore.logs.redaction import redact
from imcore.model.records import Record, iso
from imcore.util import best_effort
from imcore.util.batches import batches

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DONE, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes; click itself uses 2 for wrong usage."""

ROWS_OF_TABLE = 1000

_MOMENTARY: list[Callable[[], None]] = []
"""Functions that hide what the terminal shows only for a moment."""

# Acting characters that are visible: inside an emoji, in a keycap, in a flag, and between letters of the scripts
# (Arabic to Sinhala) whose spelling needs joiners.
_SEEN = (
    f"(?<=[{EMOJI}0-9#*])[\ufe0e\ufe0f]"
    f"|(?:(?<=[{EMOJI}])|(?<=[{EMOJI}]\ufe0f))\u200d(?=[{EMOJI}])"
    "|(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f"
    "|(?<=[\u0620-\u0dff])[\u200c\u200d](?=[\u0620-\u0dff])"
)
_ACTING_PATTERN = re.compile(f"(?P<seen>{_SEEN})|[{ACTING}]")


class OutputError(ImError):
    """The output could not be written: its reader has gone or does not read, or the disk is full."""


class BlockingFile(FileIO):
    """A descriptor that waits for its reader, also if another process has made it non-blocking."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write as many bytes as there is room for; return how many. Raise OSError."""
        while (written := super().write(data)) is None:
            select.select((), (self,), ())
        return written


def safe(text: str) -> str:
    """Return `text` on one line, without characters that act on a terminal or hide.

    A control character becomes its picture (a line break is `␊`), another acting character its number, as `<U+202E>`.
    Visible characters stay, emoji and all scripts. A second call changes nothing more.
    """
    if text.isascii() and text.isprintable():
        return text
    return _ACTING_PATTERN.sub(_picture, text)


def to_json(record: Record) -> str:
    """Return the record as one line of readable JSON; characters that act on a terminal are written `\\uXXXX`."""
    text = json.dumps(record, ensure_ascii=False, default=iso)
    if text.isascii() and text.isprintable():
        return text
    return _ACTING_PATTERN.sub(lambda match: match[0] if match["seen"] else json.dumps(match[0])[1:-1], text)


def show(records: Iterable[Record], columns: Sequence[str], *, as_json: bool) -> None:
    """Write all records: JSON Lines, or these columns as a table (tab-separated for a pipe). Raise OutputError."""
    if as_json:
        _write_lines(to_json(record) for record in records)
    elif is_terminal(sys.stdout):
        _write_tables(records, columns)
    else:
        _write_lines(_plain(records, columns))
    flush()


def say(*lines: str) -> None:
    """Write the lines to stdout as a part of the answer. Raise OutputError if that fails."""
    _write_lines(safe(line) for line in lines)


def report(*lines: str) -> None:
    """Write the lines to stdout, best-effort: the log of a command that runs in the foreground."""
    _write_best_effort(best_effort.over(sys.stdout), *map(safe, lines))


def remark(*lines: str) -> None:
    """Write the lines to stderr, best-effort: notes for a person, while a program may read stdout."""
    _write_best_effort(sys.stderr, *map(safe, fitted(sys.stderr, *map(in_sentence, lines))))


def complain(text: str) -> None:
    """Write an error or warning to stderr, best-effort, without passwords: one line, `im: ...`."""
    line = f"im: {safe(in_one_line(redact(text)))}"
    _write_best_effort(sys.stderr, *fitted(sys.stderr, line, hang=len("im: ")))


@contextmanager
def making_way(hide: Callable[[], None]) -> Iterator[None]:
    """In the `with`, call `hide` before each write: what a terminal shows only for a moment makes way."""
    _MOMENTARY.append(hide)
    try:
        yield
    finally:
        _MOMENTARY.remove(hide)


def handed_over(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records, each handed to the reader before the next is fetched: fetching one changes something."""
    for record in records:
        yield record
        flush()


def flush() -> None:
    """Hand everything written so far to the reader. Raise OutputError if that fails."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _give_up(error.strerror)


def drop() -> None:
    """Discard all further output: else the rest of the buffer fails, or waits, again when the interpreter ends."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def in_a_moment() -> Iterator[None]:
    """In the `with`, wait only a second for a reader, then raise OutputError: the command was asked to stop."""
    before = signal.signal(signal.SIGALRM, lambda *_: _give_up("nobody reads it"))
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_records() -> None:
    """Flush the output if it is read within a moment; else drop it. The command was asked to stop."""
    try:
        with in_a_moment():
            flush()
    except (OutputError, KeyboardInterrupt):
        drop()


def exit_with(action: Callable[[], int]) -> NoReturn:
    """Exit with the code that `action` returns, once all is written; with 1 and a line if it raises an ImError."""
    use_utf8()
    code = _one_line_errors(action)
    sys.exit(_one_line_errors(flush) or code)


def interrupted() -> int:
    end_records()
    complain("interrupted")
    return INTERRUPTED


def width(stream: TextIO) -> int:
    try:
        return width_of(stream.fileno())
    except (OSError, ValueError):  # a stream without a descriptor
        return width_of(-1)


def fitted(stream: TextIO | None, *lines: str, hang: int | None = None) -> list[str]:
    """Return the lines, broken if the stream is a terminal; `hang` is the indent after a break."""
    if stream is None or not is_terminal(stream):
        return list(lines)
    columns = width(stream)
    return [part for line in lines for part in fit(safe(line), columns, hang)]


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def is_dumb() -> bool:
    """Whether the terminal, by its name, can only write one line below the other."""
    return os.environ.get("TERM", "").lower() in {"dumb", "unknown", ""}


def install() -> None:
    """Give sys.stdout a buffer, whatever PYTHONUNBUFFERED says, unless it is closed.

    A buffer checks how much of a text was written; Python's text layer does not. Without a buffer a full disk cuts the
    last record in two without an error.
    """
    if sys.stdout is not None:
        buffer = BufferedWriter(BlockingFile(sys.stdout.fileno(), "w", closefd=False))
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = TextIOWrapper(buffer, encoding, errors, newline="\n", line_buffering=buffer.isatty())


def use_utf8() -> None:
    """Make stdout and stderr write UTF-8, whatever the locale and PYTHONIOENCODING say."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _make_way() -> None:
    for hide in _MOMENTARY:
        hide()


def _one_line_errors(action: Callable[[], int | None]) -> int:
    try:
        return action() or DONE
    except ImError as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return interrupted()


def _picture(match: re.Match[str]) -> str:
    char = match[0]
    if match["seen"]:
        return char
    if char < " ":
        return chr(0x2400 + ord(char))
    return "\u2421" if char == "\x7f" else f"<U+{ord(char):04X}>"


def _plain(records: Iterable[Record], columns: Sequence[str]) -> Iterator[str]:
    rows = ("\t".join(str(_cell(record[column])) for column in columns) for record in records)
    first = list(islice(rows, 1))  # after an error here nothing is written
    yield "\t".join(columns)
    yield from first
    yield from rows


def _write_tables(records: Iterable[Record], columns: Sequence[str]) -> None:
    """Write one table, or, for very many records, one after the other: they need not fit in memory."""
    rows = ([_cell(record[column]) for column in columns] for record in records)
    for page in chain([list(islice(rows, ROWS_OF_TABLE))], batches(rows, ROWS_OF_TABLE)):
        stream = _stdout()
        colour = stream.isatty() and not is_dumb() and not os.environ.get("NO_COLOR")
        _write_lines(tables.lines(columns, page, width(stream), colour=colour))


def _cell(value: object) -> tables.Cell:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, int | float) else safe(str(value))


def _write_lines(lines: Iterable[str]) -> None:
    stream = _stdout()
    is_shown = is_terminal(stream)
    for line in lines:
        if is_shown:
            _make_way()
        try:
            stream.write(line + "\n")
        except OSError as error:
            _give_up(error.strerror)


def _write_best_effort(stream: TextIO | None, *lines: str) -> None:
    _make_way()
    if stream is not None:  # print would take stdout instead
        print(*lines, sep="\n", file=stream, flush=True)


def _stdout() -> TextIO:
    if sys.stdout is None:
        _give_up("stdout is closed")
    return sys.stdout


def _give_up(reason: str | None) -> NoReturn:
    drop()
    raise OutputError(f"the output could not be written: {reason}")
