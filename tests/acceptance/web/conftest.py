"""Fixtures of the tests of the page: a real browser, and one stack for all of them."""

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from playwright.sync_api import Browser

from tests.helpers import apt
from tests.helpers.page_stack import PageStack
from tests.helpers.tabs import People, running_browser

collect_ignore_glob = [program.tests for program in apt.missing()]

_NUMBERS = count(1)


# While it runs this thread has a running asyncio loop. It ends with the file: other tests begin loops of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageStack]:
    stack = PageStack(tmp_path_factory.mktemp("page"))
    yield stack
    stack.close()


@pytest.fixture
def people(stack: PageStack, browser: Browser) -> Iterator[People]:
    """Nothing of what they do may leave an error in a console."""
    people = People(stack, browser, next(_NUMBERS))
    yield people
    people.close()
    assert [fault for tab in people.tabs for fault in tab.faults] == []


@pytest.fixture
def numbered() -> Callable[[int, int], list[str]]:
    """Texts of numbered messages, from one number to another, both included."""
    return lambda first, last: [f"message {number}" for number in range(first, last + 1)]
