"""Long commands: their progress, as a bar on stderr if that is a terminal, and their garbage.

Like all text on stderr, a bar is best-effort: a stopped terminal (Ctrl-S) delays nothing, and an error ends the bar. No
bar can stop a command, or change its exit code.
"""

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from imcore.cli import output

if TYPE_CHECKING:
    from rich import progress as rich

_AGAIN_S = 0.1
_THRESHOLDS = 100_000, 20, 20


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show progress in a unit as a bar, by the work done and the total (None: unknown)."""
    with _shown(_Bar(unit, again_s=_AGAIN_S)) as show:
        yield lambda done, total: show("", done, total)


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """Show the current activity and the time since the beginning; it disappears at the end."""
    with _shown(_Bar("", again_s=0)) as show:
        yield lambda what: show(what, 0, None)


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Let Python's search for cycles of garbage begin less often, in all threads of the process.

    Reference counts free nearly all that a check or a rebuild makes, and the usual search takes a fifth of its time.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _shown(bar: "_Bar") -> Iterator[Callable[[str, int, int | None], None]]:
    if not output.is_terminal(sys.stderr) or output.is_dumb():
        yield lambda _what, _done, _total: None
        return
    with output.making_way(bar.hide):
        try:
            yield bar.show
        finally:
            bar.hide()


class _Bar:
    """A bar that can be shown and hidden, and is drawn at most every `again_s`. After any error it is never drawn."""

    def __init__(self, unit: str, *, again_s: float) -> None:
        self._unit = unit
        self._again_s = again_s
        self._shown: rich.Progress | None = None
        self._next = 0.0

    def show(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._again_s
        with self._left_out_after_errors():
            if self._shown is None:
                self._shown = _rich_bar(self._unit, total)
                self._shown.add_task(what, completed=done, total=total)
                self._shown.start()
            self._shown.console.width = output.width(sys.stderr)  # it may have changed
            self._shown.update(self._shown.task_ids[0], description=what, completed=done, total=total, refresh=True)

    def hide(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            self._next = time.monotonic() + self._again_s
            with self._left_out_after_errors():
                shown.stop()

    @contextmanager
    def _left_out_after_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # the library may fail in any way over a terminal and its environment
            shown, self._shown, self._next = self._shown, None, math.inf
            if shown is not None:
                with suppress(Exception):
                    shown.stop()  # it has hidden the cursor


def _rich_bar(unit: str, total: int | None) -> "rich.Progress":
    """Return a bar for work in a unit; without a unit, one of the time and the current activity."""
    from rich import progress as rich  # noqa: PLC0415 (only a terminal needs it)
    from rich.console import Console  # noqa: PLC0415

    columns: list[rich.ProgressColumn] = [rich.BarColumn()]
    if not unit:
        columns = [rich.TimeElapsedColumn(), rich.TextColumn("{task.description}", markup=False)]
    elif unit == "bytes":
        columns.append(rich.FileSizeColumn() if total is None else rich.DownloadColumn())
    else:
        columns.append(rich.TextColumn("{task.completed}") if total is None else rich.MofNCompleteColumn())
        columns.append(rich.TextColumn(unit))
    if unit and total is not None:
        columns.append(rich.TimeRemainingColumn())
    # With a size (a bar takes one line): without one it reads COLUMNS and LINES, also invalid ones.
    console = Console(stderr=True, width=output.width(sys.stderr), height=24)
    # Not redirected: other text for stdout belongs there, not beside the bar.
    return rich.Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
