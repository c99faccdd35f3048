"""Answers of plain commands in one shape, whichever protocol is spoken, and whatever the driver makes of that.

Most have one anyway: those of the server's functions, and those that the driver turns into the older shape by itself.
"""

from collections.abc import Callable, Mapping
from typing import Any


def plain(command: str, answer: Any) -> Any:
    """Return an answer in the shape that it has by RESP2."""
    shape = _SHAPES.get(command)
    return shape(answer) if shape else answer


def _streams(answer: Any) -> Any:
    """A list of streams with their entries. By RESP3 it is a map, whose values the driver puts into another list."""
    if not isinstance(answer, dict):
        return answer
    return [[stream, [entry for part in parts for entry in part]] for stream, parts in answer.items()]


_SHAPES: Mapping[str, Callable[[Any], Any]] = {"XREADGROUP": _streams}
"""What to do with the answers that have two shapes, by command."""
