"""Fixtures of the tests of the page: a real browser, and one stack for the tests of a file."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.helpers import apt
from tests.helpers.page_stack import PageStack
from tests.helpers.tabs import Tab, running_browser

collect_ignore_glob = [program.tests for program in apt.missing()]

_NUMBERS = count(1)


# While it runs this thread has a running asyncio loop. It ends with the file: other tests begin loops of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageStack]:
    stack = PageStack(tmp_path_factory.mktemp("page"))
    yield stack
    stack.close()


class People:
    """Users and a group of them that no other test has. Each user has a browser profile of their own."""

    def __init__(self, stack: PageStack, browser: Browser, number: int) -> None:
        self.ann, self.bob, self.cat = (f"{name}{number}" for name in ("ann", "bob", "cat"))
        self.gid = f"team{number}"
        self.tabs: list[Tab] = []
        self._stack, self._browser = stack, browser
        self._contexts: dict[str, Any] = {}
        stack.chat.create_group(self.gid, [self.ann, self.bob])

    def tab(self, uid: str, **options: Any) -> Tab:
        """Open the page in a new tab. The tabs of a user share what the browser keeps."""
        if uid not in self._contexts:
            self._contexts[uid] = self._browser.new_context(**{"locale": "en-GB", "timezone_id": "UTC", **options})
        tab = Tab(self._contexts[uid].new_page())
        self.tabs.append(tab)
        return tab

    def online(self, uid: str, **options: Any) -> Tab:
        """Open the page in a new tab, and wait until the user is online."""
        return self.tab(uid, **options).load(self._stack.link(uid))

    def say(self, uid: str, *texts: str) -> list[str]:
        """Let a user say something on another device; return the msgids."""
        return [self._stack.chat.send(self.gid, text, sender_uid=uid).msgid for text in texts]

    def close(self) -> None:
        for context in self._contexts.values():
            context.close()


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
