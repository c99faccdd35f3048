"""What a talker has done, on disk before and after each step: for the next start after a kill, and for the verdict.

A step is two lines: what is about to be done, and what was answered. A step without an answer may have happened or not.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self


class SendAnswer(NamedTuple):
    """The answer of a send: the message is stored."""

    msgid: str
    seq: int


class Said(NamedTuple):
    """A line of the script that a talker began to send: its `number`-th in that group."""

    gid: str
    uid: str
    client_msgid: str
    number: int


class Turn(NamedTuple):
    """A guest came or went, after some message from `earliest` to `latest` (None: no answer yet).

    `position` is their offset: before they went, or after they came.
    """

    gid: str
    uid: str
    comes: bool
    earliest: int
    latest: int | None = None
    position: str | None = None


@dataclass
class Diary:
    """The steps of one talker, in order."""

    said: list[Said] = field(default_factory=list)
    lines: Counter[str] = field(default_factory=Counter)
    answers: dict[tuple[str, str], SendAnswer] = field(default_factory=dict)
    acking: list[tuple[str, str, str]] = field(default_factory=list)
    acked: list[tuple[str, str, str | None]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    present: dict[tuple[str, str], bool] = field(default_factory=dict)

    def note(self, kind: str, *values: Any) -> None:
        """Add a step or its answer."""
        match kind:
            case "say":
                self.said.append(Said(*values))
                self.lines[self.said[-1].gid] += 1
            case "sent":
                gid, client_msgid, *answer = values
                self.answers[gid, client_msgid] = SendAnswer(*answer)
            case "acking":
                self.acking.append(values)  # type: ignore[arg-type]
            case "acked":
                self.acked.append(values)  # type: ignore[arg-type]
            case "turns":
                self.turns.append(Turn(*values))
                self.present[self.turns[-1][:2]] = self.turns[-1].comes
            case "turned":
                self.turns[-1] = Turn(*values)

    def open_turn(self) -> Turn | None:
        """The coming or going that has no answer yet."""
        return self.turns[-1] if self.turns and self.turns[-1].latest is None else None

    def open_line(self) -> Said | None:
        """The line that has no answer yet."""
        last = self.said[-1] if self.said else None
        return last if last and (last.gid, last.client_msgid) not in self.answers else None

    def is_in(self, gid: str, uid: str) -> bool:
        """Whether a guest is a member: all are in the beginning."""
        return self.present.get((gid, uid), True)


class DiaryFile:
    """A diary that is written down; a kill loses no whole line."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.diary, length = _read(path)
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(length)
        self._file.seek(length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def note(self, kind: str, *values: Any) -> None:
        """Add a step or its answer, and write it down."""
        self._file.write(json.dumps([kind, *values]).encode() + b"\n")
        self.diary.note(kind, *values)


def read_diary(path: Path) -> Diary:
    """What a talker that has ended wrote down."""
    return _read(path)[0]


def _read(path: Path) -> tuple[Diary, int]:
    """The diary, and how many bytes of it are whole lines."""
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    diary = Diary()
    for line in whole.splitlines():
        diary.note(*json.loads(line))
    return diary, len(whole)
