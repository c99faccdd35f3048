"""The stream that records are written to: a record is written as a whole, or that is an error."""

import io
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Waiting(io.FileIO):
    """A descriptor whose reader is waited for, also where another process made it non-blocking."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write what there is room for; return how many bytes. Raise OSError."""
        while (written := super().write(data)) is None:
            select.select((), (self,), ())
        return written


def install() -> None:
    """Give sys.stdout a buffer, whatever PYTHONUNBUFFERED says, unless it is closed.

    Python's text layer does not look at how much of a text was written; a buffer does. Without one a full disk cuts
    the last record in two, and nobody knows.
    """
    if sys.stdout is not None:
        buffer = io.BufferedWriter(Waiting(sys.stdout.fileno(), "w", closefd=False))
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = io.TextIOWrapper(buffer, encoding, errors, newline="\n", line_buffering=buffer.isatty())
