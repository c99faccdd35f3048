"""AsyncChat: the public API under asyncio. What its methods do is that of `Chat`; another performer awaits it."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, cast

from imcore.chat import Chat
from imcore.gateway.async_gateway import AsyncGateway
from imcore.gateway.async_listener import AsyncListener
from imcore.gateway.options import SessionOptions
from imcore.gateway.request import StartMode
from imcore.model.values import ErasedUser, Message
from imcore.operations import messages
from imcore.operations.async_performer import AsyncPerformer
from imcore.settings import Settings
from imcore.system import System
from imcore.util.documented import documented_as
from imcore.util.threads import in_thread

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(
    method: Callable[Concatenate[Chat, P], T],
) -> "Callable[Concatenate[AsyncChat, P], Coroutine[Any, Any, T]]":
    """Return a method of `Chat` whose operation is awaited: there `AsyncPerformer.perform` returns a coroutine."""
    begin = cast("Callable[..., Coroutine[Any, Any, T]]", method)

    @wraps(method)
    async def awaited(self: "AsyncChat", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await begin(self, *args, **kwargs)

    return awaited


def _iterated(
    method: Callable[Concatenate[Chat, P], Iterator[T]],
) -> "Callable[Concatenate[AsyncChat, P], AsyncIterator[T]]":
    """Return a method of `Chat` as an async iterator: `AsyncPerformer.stream` returns one."""
    return cast("Callable[Concatenate[AsyncChat, P], AsyncIterator[T]]", method)


@documented_as(Chat)
class AsyncChat:
    """One connection to the system, for the tasks of one event loop. See `Chat`, whose operations it has, awaited.

    Many tasks may use it at once. What is cancelled may have happened, as after RedisUnavailable, and leaves the
    connection usable. The loop is never blocked: the database is queried in threads.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.performer = AsyncPerformer(system)

    @classmethod
    def connect(
        cls, redis_url: str | None = None, database_url: str | None = None, *, settings: Settings | None = None
    ) -> Self:
        return cls(System.connect(redis_url, database_url, settings=settings))

    async def close(self) -> None:
        await self.performer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    open_database = _awaited(Chat.open_database)

    create_group = _awaited(Chat.create_group)
    add_members = _awaited(Chat.add_members)
    remove_members = _awaited(Chat.remove_members)
    delete_group = _awaited(Chat.delete_group)
    group = _awaited(Chat.group)
    groups = _iterated(Chat.groups)
    members = _iterated(Chat.members)
    member = _awaited(Chat.member)
    online = _awaited(Chat.online)
    groups_of = _awaited(Chat.groups_of)

    async def erase_user(self, uid: str) -> ErasedUser:
        return await in_thread(lambda: Chat(self.system).erase_user(uid))

    known_user = _awaited(Chat.known_user)

    send = _awaited(Chat.send)
    send_many = _awaited(Chat.send_many)
    send_direct = _awaited(Chat.send_direct)
    recall = _awaited(Chat.recall)

    async def pull(self, uid: str, gid: str | None = None, *, limit: int | None = None) -> list[Message]:
        return [message async for message in self.performer.stream(messages.pull(uid, gid, limit=limit))]

    history = _awaited(Chat.history)
    ack = _awaited(Chat.ack)
    ack_many = _awaited(Chat.ack_many)
    delivered = _awaited(Chat.delivered)
    mark_unread = _awaited(Chat.mark_unread)
    unmark = _awaited(Chat.unmark)
    unread = _awaited(Chat.unread)
    inbox = _awaited(Chat.inbox)

    status = _awaited(Chat.status)
    tally = _awaited(Chat.tally)
    tallies = _awaited(Chat.tallies)
    message_status = _awaited(Chat.message_status)
    why = _awaited(Chat.why)
    receipts = _awaited(Chat.receipts)
    confirm_receipts = _awaited(Chat.confirm_receipts)
    set_group = _awaited(Chat.set_group)
    group_policy = _awaited(Chat.group_policy)
    set_user = _awaited(Chat.set_user)
    user_policy = _awaited(Chat.user_policy)

    begin_session = _awaited(Chat.begin_session)
    heartbeat = _awaited(Chat.heartbeat)
    end_session = _awaited(Chat.end_session)

    def gateway(self, **options: Unpack[SessionOptions]) -> AsyncGateway:
        return AsyncGateway(self.performer, self.system.settings, **options)

    def listen(
        self,
        uid: str,
        *,
        start: StartMode = "unread",
        after: Mapping[str, str] | None = None,
        **options: Unpack[SessionOptions],
    ) -> AsyncListener:
        return AsyncListener(self.gateway(**options), uid, start=start, after=after)
