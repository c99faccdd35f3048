"""AsyncGateway behind the face of Gateway: the same tests drive both."""

import asyncio
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from imcore import AsyncChat, AsyncGateway, AsyncListener, Chat, Message, Receipt, Session
from imcore.gateway.core import Core
from imcore.gateway.lane import LiveLane
from imcore.gateway.lanes import Lanes
from imcore.operations.async_performer import AsyncPerformer
from imcore.operations.effects import Effect, StartCalls
from imcore.settings import Settings


class _Performer(AsyncPerformer):
    """Performs effects of the chat of a test, after what the test does before each."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat.system)
        self._chat = chat

    def perform_now(self, effect: Effect[Any]) -> Any:
        is_hooked = hasattr(self._chat, "before_effect") or hasattr(self._chat, "start_async")
        return None if is_hooked else super().perform_now(effect)

    async def perform_one(self, effect: Effect[Any]) -> Any:
        if before := getattr(self._chat, "before_effect", None):
            before(effect)
        if isinstance(effect, StartCalls) and (start := getattr(self._chat, "start_async", None)):
            return await start(effect.calls, self.client.start)
        return await super().perform_one(effect)


def before_effects(chat: Chat, monkeypatch: pytest.MonkeyPatch, before: Callable[[Effect[Any]], object]) -> None:
    """Do something before each effect of a chat is performed, by either driver."""
    perform_one = chat.performer.perform_one

    def hooked(effect: Effect[Any]) -> Any:
        before(effect)
        return perform_one(effect)

    monkeypatch.setattr(chat.performer, "perform_one", hooked)
    monkeypatch.setattr(chat, "before_effect", before, raising=False)


class _InLoop:
    """An object whose coroutines a loop runs to their end, one at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any) -> None:
        self._loop, self._inner = loop, inner

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._inner, name)
        return self._in_loop(member) if inspect.iscoroutinefunction(member) else member

    def _in_loop(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: self._loop.run_until_complete(function(*args, **options))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._in_loop(self._inner.__aexit__)(kind, *rest)


def lanes_of(gateway: AsyncGateway) -> Sequence[LiveLane]:
    lanes = gateway._lanes
    return lanes._lanes if isinstance(lanes, Lanes) else [lanes] if lanes else []


class LoopGateway(_InLoop):
    def __enter__(self) -> "LoopGateway":
        return self

    def _read(self, timeout_s: float) -> None:
        """Pass on what comes, as `Gateway._read` does: nothing is stepped or handed over."""
        self._in_loop(asyncio.sleep)(timeout_s)
        for lane in lanes_of(self._inner):
            lane.pass_on()


class LoopListener(_InLoop):
    def __init__(self, loop: asyncio.AbstractEventLoop, inner: AsyncListener) -> None:
        super().__init__(loop, inner)
        self._in_loop(inner.__aenter__)()

    def __enter__(self) -> "LoopListener":
        return self

    def __iter__(self) -> Iterator[Message | Receipt]:
        items = aiter(self._inner)
        while True:
            yield self._in_loop(items.__anext__)()


class LoopChat(_InLoop):
    """An AsyncChat whose loop runs when a test calls. Use it in a `with`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(asyncio.new_event_loop(), AsyncChat.connect(settings=settings))

    def __enter__(self) -> "LoopChat":
        return self

    def __exit__(self, *rest: Any) -> None:
        super().__exit__(*rest)
        self._loop.close()


class AsyncDriver:
    """An event loop that runs when a test calls, and the asyncio gateways of all its chats."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._performers: dict[int, _Performer] = {}

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let all chats return gateways and listeners that run in this loop."""

        def gateway(chat: Chat, **options: Any) -> LoopGateway:
            return LoopGateway(self._loop, self._gateway(chat, options))

        def listen(chat: Chat, uid: str, *, start: Any = "unread", after: Any = None, **options: Any) -> LoopListener:
            return LoopListener(self._loop, AsyncListener(self._gateway(chat, options), uid, start=start, after=after))

        monkeypatch.setattr(Chat, "gateway", gateway)
        monkeypatch.setattr(Chat, "listen", listen)

    def _gateway(self, chat: Chat, options: Any) -> AsyncGateway:
        performer = self._performers.setdefault(id(chat), _Performer(chat))
        return AsyncGateway(performer, chat.system.settings, **options)

    def close(self) -> None:
        for performer in self._performers.values():
            self._loop.run_until_complete(performer.client.close())
        self._loop.close()


def cores_of(gateway: Any) -> list[Core]:
    if isinstance(gateway, LoopGateway):
        return [lane.core for lane in lanes_of(gateway._inner)]
    return [gateway._core]


def lane_of(gateway: Any, name: str) -> Any:
    """The `core`, `_perform` and `_subscription` of a gateway that have a group, or what is of a user alone."""
    if isinstance(gateway, LoopGateway):
        lanes = lanes_of(gateway._inner)
        return _InLoop(gateway._loop, lanes[lanes[0]._space.partition_of(name) if len(lanes) > 1 else 0])
    return SimpleNamespace(core=gateway._core, _perform=gateway._perform, _subscription=gateway._subscription)


def part_of(session: Session, gid: str) -> Session:
    """The part of a session that has a group: the session itself, where there is one lane."""
    return next((part for part in session.parts if gid in part.gids), session)
