"""How far something that takes long has come: a bar on stderr where a person looks at it, elsewhere nothing.

As all that goes to stderr, a bar is best-effort: a terminal that was stopped (Ctrl-S) holds nothing up.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cli import output

if TYPE_CHECKING:
    from rich import progress as rich

_AGAIN_S = 0.1


class Progress(NamedTuple):
    """What to call: `to` with how much is done and of how much (None: nobody knows), `complain` with a line."""

    to: Callable[[int, int | None], None]
    complain: Callable[[str], None]


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """Show progress in so many of a unit; `bytes` get their own prefixes (kB, MB).

    The bar comes with the first report, makes way for whatever is written meanwhile, and is gone at the end.
    """
    if not output.is_terminal(sys.stderr):
        yield Progress(lambda _done, _of: None, output.complain)
        return
    bar = _Bar(unit)
    with output.making_way(bar.hide):
        try:
            yield Progress(bar.show, output.complain)
        finally:
            bar.hide()


class _Bar:
    """A bar that is there or is not, and is drawn ten times a second at most."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._shown: rich.Progress | None = None
        self._next = 0.0

    def show(self, done: int, of: int | None) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _AGAIN_S
        if self._shown is None:
            self._shown = _rich_bar(self._unit, done, of)
            self._shown.start()
        self._shown.update(self._shown.task_ids[0], completed=done, total=of)

    def hide(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None
            self._next = time.monotonic() + _AGAIN_S


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
    # Not redirected: what is written to stdout meanwhile belongs there, not beside the bar.
    bar = rich.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )
    bar.add_task("", total=of, completed=done)
    return bar
