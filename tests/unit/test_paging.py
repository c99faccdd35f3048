"""Streams, read page by page."""

from collections.abc import Callable

import pytest

from imcore.streams import paging

Entry = tuple[bytes, str]


def pages_of(entries: list[Entry], size: int, asked: list[str]) -> Callable[[str], tuple[list[Entry], bool]]:
    def page_from(first: str) -> tuple[list[Entry], bool]:
        asked.append(first)
        left = [entry for entry in entries if first == "-" or f"({entry[0].decode()}" > first]
        return left[:size], len(left) > size

    return page_from


@pytest.mark.parametrize(("count", "questions"), [(0, ["-"]), (2, ["-"]), (5, ["-", "(2-0", "(4-0"])])
def test_all_entries_come_in_order_by_the_page(count: int, questions: list[str]) -> None:
    entries = [(b"%d-0" % number, "text") for number in range(1, count + 1)]
    asked: list[str] = []
    assert list(paging.entries(pages_of(entries, 2, asked))) == entries
    assert asked == questions
