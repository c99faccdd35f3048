"""How far something that takes long has come: a bar on stderr where a person looks at it, elsewhere nothing.

As all that goes to stderr, a bar is best-effort: a terminal that was stopped (Ctrl-S) holds nothing up.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from cli import output

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class Progress(NamedTuple):
    """What to call: `to` with how much is done and of how much (None: nobody knows), `complain` with a line."""

    to: Callable[[int, int | None], None]
    complain: Callable[[str], None]


def progress(unit: str) -> AbstractContextManager[Progress]:
    """Show progress in so many of a unit; `bytes` get their own prefixes (kB, MB)."""
    if output.is_terminal(sys.stderr):
        return bar(unit)
    return nullcontext(Progress(lambda _done, _of: None, output.complain))


@contextmanager
def bar(unit: str) -> Iterator[Progress]:
    """Show a bar, whoever looks."""
    from rich import progress as rich  # noqa: PLC0415 (only a terminal needs it)
    from rich.console import Console  # noqa: PLC0415

    count: list[ProgressColumn] = (
        [rich.DownloadColumn()] if unit == "bytes" else [rich.MofNCompleteColumn(), rich.TextColumn(unit)]
    )
    console = Console(stderr=True)

    def complain(line: str) -> None:
        console.print(output.error_line(line), markup=False, emoji=False, highlight=False, soft_wrap=True)

    columns = (rich.BarColumn(), *count, rich.TimeRemainingColumn())
    # Not redirected: what is written to stdout meanwhile belongs there, not beside the bar.
    with rich.Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as shown:
        task = shown.add_task("", total=None)
        yield Progress(lambda done, of: shown.update(task, completed=done, total=of), complain)
