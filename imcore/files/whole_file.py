"""Writes a file that appears once it is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase


@contextmanager
def whole_file(path: str) -> Iterator[BufferedIOBase]:
    """Open a file for writing, which only its owner can read. Raise OSError, ValueError.

    The file takes its name at the end of the `with`; until then a file of that name stays as it is. After an error
    there is no new file. What is no regular file, such as a pipe, is written as it is.
    """
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            yield file
        return
    part = f"{path}.part"
    with suppress(FileNotFoundError):
        os.unlink(part)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
