"""Progress of a long command: a line on stderr if that is a terminal.

Like all text on stderr it is best-effort: a stopped terminal (Ctrl-S) delays nothing. It cannot stop a command, nor
change its exit code.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from imcore.cli import output

_AGAIN_S = 0.1
_BAR_CELLS = 20


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show progress in a unit as a bar, by the work done and the total (None: unknown)."""
    began = time.monotonic()
    with _line(_AGAIN_S) as show:
        yield lambda done, total: show(_counted(done, total, unit, time.monotonic() - began))


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Show the current activity and the time since the beginning; it disappears at the end."""
    began = time.monotonic()
    with _line(0) as show:
        yield lambda what: show(f"{_whole(time.monotonic() - began)} {what}")


@contextmanager
def _line(again_s: float) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a text in place of its last one, at most every `again_s`. Other text hides it."""
    shown, next_at = "", 0.0

    def write(text: str) -> None:
        nonlocal shown, next_at
        if text or shown:
            shown, next_at = text, time.monotonic() + again_s
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def show(text: str) -> None:
        if time.monotonic() >= next_at:
            write(text[: output.width(sys.stderr) - 1])

    if not output.is_terminal(sys.stderr) or output.is_dumb():
        yield lambda _: None
        return
    with output.making_way(lambda: write("")):
        try:
            yield show
        finally:
            write("")


def _counted(done: int, total: int | None, unit: str, seconds: float) -> str:
    if total is None:
        return f"{done:,} {unit}"
    share = min(1.0, done / total) if total else 1.0
    full = round(share * _BAR_CELLS)
    left = f", {_whole(seconds / share - seconds)} left" if done else ""
    return f"{'━' * full}{'╺' * (_BAR_CELLS - full)} {done:,}/{total:,} {unit}{left}"


def _whole(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
