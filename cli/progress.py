"""How far something that takes long has come: a bar on stderr where a person looks at it, elsewhere nothing.

As all that goes to stderr, a bar is best-effort: a terminal that was stopped (Ctrl-S) holds nothing up, and a bar that
cannot be drawn is left out. No bar can stop a command, or change its exit code.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from cli import output

if TYPE_CHECKING:
    from rich import progress as rich

_AGAIN_S = 0.1
_HEIGHT = 24
"""Any will do: a bar takes one line."""


class Progress(NamedTuple):
    """What to call: `to` with how much is done and of how much (None: nobody knows), `complain` with a line."""

    to: Callable[[int, int | None], None]
    complain: Callable[[str], None]


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """Show progress in so many of a unit; `bytes` get their own prefixes (kB, MB).

    The bar comes with the first report, makes way for whatever is written meanwhile, and is gone at the end.
    """
    if not output.is_terminal(sys.stderr) or output.is_dumb():
        yield Progress(lambda _done, _of: None, output.complain)
        return
    bar = _Bar(unit)
    with output.making_way(bar.hide):
        try:
            yield Progress(bar.show, output.complain)
        finally:
            bar.hide()


class _Bar:
    """A bar that is there or is not, and is drawn ten times a second at most. After any error it is never drawn."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._shown: rich.Progress | None = None
        self._next = 0.0

    def show(self, done: int, of: int | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _AGAIN_S
        with self._left_out_after_errors():
            if self._shown is None:
                self._shown = _rich_bar(self._unit, done, of)
                self._shown.start()
            self._shown.console.width = output.width(sys.stderr)  # it may have changed
            self._shown.update(self._shown.task_ids[0], completed=done, total=of, refresh=True)

    def hide(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            self._next = time.monotonic() + _AGAIN_S
            with self._left_out_after_errors():
                shown.stop()

    @contextmanager
    def _left_out_after_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # whatever the library makes of a terminal and its environment
            shown, self._shown, self._next = self._shown, None, math.inf
            if shown is not None:
                with suppress(Exception):
                    shown.stop()  # it has hidden the cursor


def _rich_bar(unit: str, done: int, of: int | None) -> "rich.Progress":
    from rich import progress as rich  # noqa: PLC0415 (only a terminal needs it)
    from rich.console import Console  # noqa: PLC0415

    count: list[rich.ProgressColumn]
    if unit == "bytes":
        count = [rich.FileSizeColumn()] if of is None else [rich.DownloadColumn()]
    else:
        count = [
            rich.TextColumn("{task.completed}") if of is None else rich.MofNCompleteColumn(),
            rich.TextColumn(unit),
        ]
    columns = (rich.BarColumn(), *count, *([] if of is None else [rich.TimeRemainingColumn()]))
    # With a size, or it would read COLUMNS and LINES by itself, whatever they are.
    console = Console(stderr=True, width=output.width(sys.stderr), height=_HEIGHT)
    # Not redirected: what is written to stdout meanwhile belongs there, not beside the bar. And no thread draws it.
    bar = rich.Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        auto_refresh=False,
    )
    bar.add_task("", total=of, completed=done)
    return bar
