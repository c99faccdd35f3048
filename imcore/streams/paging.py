"""Reads a stream page by page."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Entry = TypeVar("Entry", bound=Sequence[Any])


def entries(page_from: Callable[[str], tuple[Sequence[Entry], bool]], first: str = "-") -> Iterator[Entry]:
    """Yield the entries of a stream from `first` on (an id as XRANGE takes it).

    `page_from` returns the page that begins at an id, and whether others may come after it. Entries begin with the id.
    """
    more = True
    while more:
        page, more = page_from(first)
        yield from page
        if page:
            first = f"({page[-1][0].decode()}"
