"""The stream for records: each is written as a whole, or raises an error."""

import io
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class BlockingFile(io.FileIO):
    """A descriptor that waits for its reader, also if another process has made it non-blocking."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write as many bytes as there is room for; return how many. Raise OSError."""
        while (written := super().write(data)) is None:
            select.select((), (self,), ())
        return written


def install() -> None:
    """Give sys.stdout a buffer, whatever PYTHONUNBUFFERED says, unless it is closed.

    A buffer checks how much of a text was written; Python's text layer does not. Without a buffer a full disk cuts the
    last record in two without an error.
    """
    if sys.stdout is not None:
        buffer = io.BufferedWriter(BlockingFile(sys.stdout.fileno(), "w", closefd=False))
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = io.TextIOWrapper(buffer, encoding, errors, newline="\n", line_buffering=buffer.isatty())
