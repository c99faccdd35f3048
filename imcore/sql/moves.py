"""The cell `uids` of offset_moves: uids and their delays (see `imcore.model.rows.Movers`), as JSON, one batch a line.

    ["ann", "bob", 5, "cy"]                      cy moved 5 ms after the others
    {"user-000": ["17", "18", 5, "21"]}          the same of uids that begin alike

A worker that is killed leaves entries that come again in other batches. If one begins with the same entry, its line is
added, unless the cell has it: so nothing is lost, and repetitions change nothing. No line contains a line break.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from os.path import commonprefix

from imcore.model.rows import Movers, delays_of
from imcore.sql.cells import text_of

ADD_LINE = """uids = offset_moves.uids || '\n' || excluded.uids
        WHERE replace('\n' || offset_moves.uids || '\n', '\n' || excluded.uids || '\n', '')
            = '\n' || offset_moves.uids || '\n'"""
"""Adds the line of `excluded` to a stored cell, in SQLite and in PostgreSQL."""

_MORE_FOR_A_PREFIX = len('{"":}')

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@lru_cache(maxsize=256)
def line_of(movers: Movers) -> str:
    """Return the line of a cell. A gateway's sessions ack together, so most lines come often."""
    uids = [mover for mover in movers if isinstance(mover, str)]
    prefix = commonprefix(uids)  # noqa: RUF071 (of characters)
    width = len(prefix)
    if width * (len(uids) - 1) <= _MORE_FOR_A_PREFIX:
        return _json(movers)
    return _json({prefix: [mover[width:] if isinstance(mover, str) else mover for mover in movers]})


def movers_of(cell: object) -> Iterator[tuple[str, int]]:
    """Yield the uids of a cell, and how many ms after the row's entry each moved; a uid may come more than once.

    A cell that somebody has written by hand may hold anything: what cannot be read is left out.
    """
    for line in text_of(cell).split("\n"):
        value = _parsed(line)
        for prefix, movers in value.items() if isinstance(value, dict) else [("", value)]:
            for uid, delay in delays_of(movers if isinstance(movers, list) else ()):
                yield prefix + uid, delay


def names(cell: object, uid: str) -> bool:
    """Return whether a cell names a user."""
    return any(mover == uid for mover, _ in movers_of(cell))


def renamed(cell: object, uid: str, alias: str) -> str:
    """Return a cell with another name for a user. Lines that do not name them stay as they are."""
    return "\n".join(
        _renamed_line(line, uid, alias) if names(line, uid) else line for line in text_of(cell).split("\n")
    )


def _renamed_line(line: str, uid: str, alias: str) -> str:
    value = _parsed(line)
    movers: list[str | int] = []
    for prefix, some in value.items() if isinstance(value, dict) else [("", value)]:
        for mover in some if isinstance(some, list) else ():
            name = prefix + mover if isinstance(mover, str) else mover
            movers.append(alias if name == uid else name)
    return line_of(tuple(movers))


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
