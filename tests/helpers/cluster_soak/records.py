"""What a process of the cluster soak writes down, a JSON line a record: a kill loses no whole line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RecordFile:
    """A file of records. One that a killed process has left is gone on with."""

    def __init__(self, path: Path) -> None:
        path.touch()
        whole = _whole(path)
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(len(whole))
        self._file.seek(len(whole))

    def note(self, kind: str, *values: Any) -> None:
        """Write a record down."""
        self.note_all([(kind, *values)])

    def note_all(self, records: list[tuple[Any, ...]]) -> None:
        """Write records down, together."""
        self._file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))

    def close(self) -> None:
        self._file.close()


def records_of(path: Path) -> Iterator[list[Any]]:
    """Return the records of a file, each a list that begins with its kind."""
    return map(json.loads, _whole(path).splitlines()) if path.exists() else iter(())


def _whole(path: Path) -> bytes:
    text = path.read_bytes()
    return text[: text.rfind(b"\n") + 1]
