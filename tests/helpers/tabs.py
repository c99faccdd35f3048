"""Tabs of a real browser, each with the page of one user, and what a person sees and does in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect, sync_playwright

from tests.helpers import apt
from tests.helpers.deadline import wait_until
from tests.helpers.page_stack import PageStack

_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
_TIMEOUT_MS = 30_000

_SET_VISIBILITY = """state => {
    Object.defineProperty(document, 'visibilityState', {value: state, configurable: true});
    document.dispatchEvent(new Event('visibilitychange'));
}"""
_ROWS = """rows => rows.map(row => [row.querySelector('.text').textContent, row.querySelector('.tick').hidden ? '' :
    `${row.querySelector('.tick').dataset.tick} ${row.querySelector('.count').textContent}`.trim()])"""


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A headless Chromium."""
    expect.set_options(timeout=_TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=apt.CHROMIUM.needed, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One tab. `faults` are what a person never sees: errors of scripts, violations of the security policy."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []
        page.set_default_timeout(_TIMEOUT_MS)
        page.on("console", self._noted)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _noted(self, message: ConsoleMessage) -> None:
        # The browser reports a server that is away by itself.
        is_offline = "WebSocket connection to" in message.text or "net::ERR_" in message.text
        if message.type in {"error", "warning"} and not is_offline:
            self.faults.append(message.text)

    def note_sent(self, method: str, frames: list[str]) -> None:
        """Add to a list what this tab sends of a method, once it is loaded."""

        def note(frame: str | bytes) -> None:
            if f'"method":"{method}"' in str(frame):
                frames.append(str(frame))

        self.page.on("websocket", lambda socket: socket.on("framesent", note))

    @property
    def context(self) -> BrowserContext:
        return self.page.context

    def load(self, url: str, state: str = "online") -> "Tab":
        self.page.goto(url)
        return self.wait_for_state(state)

    def wait_for_state(self, state: str = "online") -> "Tab":
        self.page.wait_for_selector(f"#state[data-state={state}]")
        return self

    def group(self, gid: str) -> Locator:
        return self.page.locator(f"#groups button[data-gid={gid!r}]")

    def open(self, gid: str) -> "Tab":
        self.group(gid).click()
        self.page.wait_for_function("title => document.getElementById('title').textContent === title", arg=gid)
        return self

    def write(self, *texts: str) -> None:
        for text in texts:
            self.page.locator("#composer textarea").fill(text)
            self.page.locator("#composer textarea").press("Enter")

    def rows(self) -> list[list[str]]:
        """What is shown of the conversation: each text with its tick, `some 1/3`; none for those of others."""
        rows: list[list[str]] = self.page.locator("#rows .row, #waiting .row").evaluate_all(_ROWS)
        return rows

    def texts(self) -> list[str]:
        return [text for text, _ in self.rows()]

    def tick(self, text: str) -> str | None:
        return next((tick for each, tick in self.rows() if each == text), None)

    def wait_for_texts(self, *texts: str) -> None:
        """Wait until exactly these are shown."""
        wait_until(lambda: self.texts() == list(texts) or self._late(texts))

    def _late(self, texts: tuple[str, ...]) -> bool:
        assert len(self.texts()) <= len(texts), (self.texts(), texts)
        return False

    def wait_for_tick(self, text: str, tick: str) -> None:
        wait_until(lambda: self.tick(text) == tick)

    def unread(self, gid: str) -> int:
        badge = self.group(gid).locator(".badge")
        return int(badge.text_content() or 0) if badge.is_visible() else 0

    def wait_for_unread(self, gid: str, count: int) -> None:
        wait_until(lambda: self.unread(gid) == count)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that routes of this tab have a part in: they run only while the tab is asked."""
        wait_until(lambda: self.page.title() is not None and condition())

    def set_hidden(self, is_hidden: bool) -> None:
        """Let the tab take itself for one behind another, or no more: a browser without screen never hides one."""
        self.page.evaluate(_SET_VISIBILITY, "hidden" if is_hidden else "visible")

    def set_offline(self, is_offline: bool) -> None:
        """Cut all tabs of this browser profile off from the network, or connect them again."""
        self.context.set_offline(is_offline)
        self.wait_for_state("offline" if is_offline else "online")

    def scroll(self, where: str) -> None:
        self.log("log => log.scrollTop = 0" if where == "top" else "log => log.scrollTop = log.scrollHeight")

    def log(self, script: str) -> Any:
        return self.page.locator("#log").evaluate(script)

    def is_at_end(self) -> bool:
        """Whether the newest message is in view."""
        at_bottom = self.log("log => log.scrollHeight - log.scrollTop - log.clientHeight < 5")
        return bool(at_bottom) and not self.page.locator("#newer").is_visible()

    def scroll_to_end(self) -> None:
        """Scroll down until there is nothing below."""

        def is_there() -> bool:
            self.scroll("bottom")
            return self.is_at_end()

        wait_until(is_there)

    def scroll_to_beginning(self) -> None:
        """Scroll up until there is nothing above."""

        def is_there() -> bool:
            self.scroll("top")
            return (self.page.locator("#older").text_content() or "").startswith("This is the beginning")

        wait_until(is_there)


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
