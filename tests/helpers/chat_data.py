"""Real chat to test on: files from outside the repository where there are some, else a small made-up history.

Files are looked for in the folder that `IM_TEST_CHAT_DIR` names, else in `../shared/data` beside the repository. The
made-up history has the same shape and is the same on every run; it has the names and turns that real chat lacks.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]

ODD_GIDS = ("#ubuntu", "群主")
ODD_NAMES = (
    *("{0}", "a:b", "群主", "[red]eve[/red]", "o'neil", "a[b]c", "%s", "null", "0", " ", "*", "|QuaD-"),
    *("\\x1f", "AND 1=1", "👩\u200d👧"),
)
ODD_TEXTS = (
    "two\nlines",
    "\x1b[31mred\x1b[0m \x1b[2J",
    "[bold]no markup[/bold] [/]",
    '"quoted", {"json": 1}',
    "'; DROP TABLE group_msgs; --",
    "long " * 600,
    "\u202eright to left",
    "👍🏽",
    " ",
)

_REPOSITORY = Path(__file__).parents[2]
_NAMES = (*(f"user{n}" for n in range(25)), *ODD_NAMES)
_TURNS = {"message": 50, "ack": 30, "join": 7, "leave": 7, "rename": 3, "repeat": 3}


@dataclass(frozen=True)
class ChatFile:
    """A history: lines of events for `im import`, all of them valid."""

    name: str
    read: Callable[[], list[bytes]]

    def lines(self) -> list[bytes]:
        """The file's lines, as reading it gives them."""
        return self.read()

    def events(self) -> list[Event]:
        """The events of the lines."""
        return [json.loads(line) for line in self.lines()]

    def __str__(self) -> str:
        return self.name


def chat_files() -> list[ChatFile]:
    """The real files if there are any, and always the made-up one."""
    folder = Path(os.environ.get("IM_TEST_CHAT_DIR") or _REPOSITORY.parent / "shared" / "data")
    real = [ChatFile(path.stem, lambda path=path: _lines_of(path)) for path in sorted(folder.glob("*.jsonl"))]
    return [*real, ChatFile("made-up", made_up_lines)]


def made_up_lines(events: int = 500) -> list[bytes]:
    """A history of this many events, always the same."""
    story = _Story()
    return [json.dumps(story.event(number), ensure_ascii=False).encode() + b"\n" for number in range(events)]


def _lines_of(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return file.readlines()


class _Story:
    """Makes up events: a turn by chance, of a group and a user by chance."""

    def __init__(self) -> None:
        self._chance = random.Random(20041225)
        self._said: dict[str, list[Event]] = {gid: [] for gid in ODD_GIDS}

    def event(self, number: int) -> Event:
        """The next event; `number` makes its client_msgid and its time."""
        gid = self._chance.choices(ODD_GIDS, weights=(4, 1))[0]
        turn = self._chance.choices([*_TURNS], weights=[*_TURNS.values()])[0]
        if turn == "repeat" and self._said[gid]:
            return self._chance.choice(self._said[gid])
        if turn == "ack" and self._said[gid]:
            return self._ack(gid)
        if turn in {"message", "repeat", "ack"}:
            return self._message(gid, number)
        event = {"type": turn, "gid": gid, "uid": self._name(), "note": "a key that nobody knows"}
        return event | {"new_uid": self._name()} if turn == "rename" else event

    def _name(self) -> str:
        return self._chance.choice(_NAMES)

    def _message(self, gid: str, number: int) -> Event:
        event = {
            "type": "message",
            "time": f"2004-12-25T{9 + number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}Z",
            "gid": gid,
            "uid": self._name(),
            "content": self._chance.choice([f"line {number}"] * 20 + [*ODD_TEXTS]),
            "client_msgid": f"c{number}",
        }
        self._said[gid].append(event)
        return event

    def _ack(self, gid: str) -> Event:
        # Mostly of what was just said, sometimes of anything
        said = self._said[gid] if self._chance.random() < 0.2 else self._said[gid][-5:]
        return {
            "type": "ack",
            "gid": gid,
            "uid": self._name(),
            "client_msgid": self._chance.choice(said)["client_msgid"],
        }
