"""All clients of one process: the chat, one gateway for their sessions, and the calls that come in."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from imcore import msgid as msgids
from imcore.aio import AsyncChat
from imcore.errors import (
    DatabaseNotReady,
    ImError,
    NotAuthenticated,
    TooManyCalls,
    TooManySockets,
    TryAgain,
)
from imcore.metrics import WebMetrics
from imcore.model.limits import check_resume_points
from imcore.operations import queries
from imcore.operations.erased import latest_erasures
from imcore.web import jsonrpc, methods, position_methods
from imcore.web.access import Access, Authenticate, May
from imcore.web.acks import AckInbox
from imcore.web.auth import Identity
from imcore.web.client import GOING_AWAY, Client
from imcore.web.delivery import deliver
from imcore.web.flow import RateLimits
from imcore.web.jsonrpc import INTERNAL_ERROR, METHOD_NOT_FOUND, Request, RpcError
from imcore.web.method import METHODS, Caller, Method
from imcore.web.parameters import arguments
from imcore.web.pings import Pings
from imcore.web.settings import WebSettings

if TYPE_CHECKING:
    from imcore.gateway.async_gateway import AsyncGateway
    from imcore.gateway.fanout import Session

log = logging.getLogger(__name__)

ACK_INTERVAL_S = 0.1
"""Acks are folded for so long: people see a tick within half a second, the workers' window included."""
PAGES_BUFFERED = 10
"""A socket may hold so many pages of missed texts. JSON makes up to six bytes of one."""
HTTP_CALLS = 1000
"""Calls by HTTP that are in hand at once."""
SOCKETS_S = 2.0
"""The time in which sockets may take what was sent, and answer the close frame, when the server ends."""
TICK_S = 0.05
MODULES = (methods, position_methods)
"""Those that define the methods."""


class Hub:
    """The clients of one process. `start` it before use; all in the thread of its event loop."""

    def __init__(
        self,
        chat: "AsyncChat | None" = None,
        *,
        settings: WebSettings | None = None,
        authenticate: Authenticate | None = None,
        may: May | None = None,
        demo: bool = False,
    ) -> None:
        """Raise ConfigurationError without `authenticate` and without a key in the settings."""
        self.settings = settings or WebSettings.from_env()
        self.methods: Mapping[str, Method] = {
            name: method for name, method in METHODS.items() if demo or not method.is_demo_only
        }
        self.metrics = WebMetrics(lambda: self._gateway.ack_calls if self._gateway else 0)
        self.is_stopping = False
        self._given_chat = chat
        self.access = Access(self.settings, authenticate, may)
        self._chat: AsyncChat | None = None
        self._gateway: AsyncGateway | None = None
        self._pump: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[Client, None] = {}
        self._sockets: Counter[str] = Counter()
        """By uid, those with a session."""
        self._http_calls = 0
        self.acks = AckInbox(lambda: self.gateway, self.metrics)
        self.pings = Pings()
        self._rates = RateLimits(self.settings.calls_per_s, self.settings.calls_burst)

    @property
    def chat(self) -> "AsyncChat":
        if self._chat is None:
            raise RuntimeError("the hub was not started")
        return self._chat

    @property
    def gateway(self) -> "AsyncGateway":
        if self._gateway is None:
            raise RuntimeError("the hub was not started")
        return self._gateway

    @property
    def is_full(self) -> bool:
        return len(self._clients) > self.settings.max_sockets

    async def start(self) -> None:
        """Begin, in the running loop. Again: nothing."""
        async with self._starting:
            if self._pump is None and not self.is_stopping:
                self._chat = self._given_chat or AsyncChat.connect()
                self._gateway = self._chat.gateway(
                    acks="client",
                    ack_interval_s=ACK_INTERVAL_S,
                    page_bytes=max(1, self.settings.max_buffered_bytes // PAGES_BUFFERED),
                )
                self._pump = asyncio.create_task(deliver(self._gateway, self.metrics))
                self._run(self._open_database(self._chat))

    async def _open_database(self, chat: AsyncChat) -> None:
        """Open the database, which the first page of history would wait for."""
        with suppress(DatabaseNotReady):  # no worker has stored anything yet
            await chat.open_database()

    async def close(self, patience_s: float = 3.0) -> None:
        """End: no calls are taken any more, those in hand are answered, acks go out, sockets close with 1001.

        A server that is away delays the end by `patience_s` at most, twice.
        """
        self.is_stopping = True
        clients = list(self._clients)
        if clients:
            finishing = [asyncio.ensure_future(client.finish()) for client in clients]
            _, late = await asyncio.wait(finishing, timeout=patience_s)
            for task in late:
                task.cancel()
        for client in clients:
            client.close(GOING_AWAY, "the server ends")
        loop = asyncio.get_running_loop()
        give_up = loop.time() + SOCKETS_S
        while self._clients and loop.time() < give_up:
            await asyncio.sleep(TICK_S)
        async with self._starting:
            pump, self._pump = self._pump, None
            if pump:
                pump.cancel()
                await asyncio.wait([pump])
                await self._close_gateway(patience_s)

    async def _close_gateway(self, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await self.gateway.close()
        except TimeoutError:
            log.warning("acks could not be sent within %g s: what was not acked comes again", patience_s)
        for task in list(self._tasks):
            task.cancel()
        if self._given_chat is None:
            await self.chat.close()

    # Clients.

    def add(self, client: Client) -> None:
        """Note a client whose socket has come."""
        self._clients[client] = None
        self.metrics.sockets.set(len(self._clients))

    def gone(self, client: Client) -> None:
        """Note that the socket of a client is gone."""
        self._clients.pop(client, None)
        self.metrics.sockets.set(len(self._clients))

    async def open(self, client: Client, uid: str, **options: Any) -> "Session":
        """Begin the session of a client. Raise TooManySockets, InvalidInput, TryAgain."""
        if self.is_stopping:
            raise TryAgain("the server ends")
        most = self.settings.user_sockets
        if self._sockets[uid] >= most:
            raise TooManySockets(f"{uid!r} has {most} sockets, as many as a user may have (IM_WEB_USER_SOCKETS)")
        self._sockets[uid] += 1  # before the wait: others may come meanwhile
        try:
            session = await self.gateway.open(uid, tag=client, **options)
        except BaseException:
            self._left(uid)
            raise
        return session

    def end(self, session: "Session") -> None:
        """End a session: what its client has acked is acked."""
        self.acks.flush()
        self._left(session.uid)
        if not self.is_stopping:  # or `close` ends all of them at once
            self._run(self.gateway.end(session))

    def _left(self, uid: str) -> None:
        self._sockets[uid] -= 1
        if self._sockets[uid] <= 0:
            del self._sockets[uid]

    async def erasures(self, after: Mapping[str, str]) -> Mapping[str, str | None]:
        """Return the latest erasure of a user in each group of which a client has messages. Raise InvalidInput.

        Groups whose node is silent are left out.
        """
        return await self.chat.performer.perform(latest_erasures(check_resume_points(after)))

    async def connected(
        self, session: "Session", after: Mapping[str, str], erasures: Mapping[str, str | None]
    ) -> dict[str, object]:
        """Return for each group of a session that has just begun what is acked and unread, and where it begins.

        Raise TryAgain if a node has fallen silent since it began, or was when erasures were asked for.
        """
        counts: Mapping[str, int] = {}
        if any(start.unread is None for start in session.starts.values()):
            unread = await self.chat.unread(session.uid)
            counts = {each.gid: each.unread for each in unread}
            if unread.silent and not counts.keys() >= session.starts.keys():
                raise TryAgain("a node of Redis has just fallen silent: try again")
        if not erasures.keys() >= session.starts.keys() & after.keys():
            raise TryAgain("a node of Redis was silent a moment ago: try again")
        groups: list[dict[str, object]] = [
            {
                "gid": gid,
                "last_ack_msgid": start.last_ack_msgid,
                "last_msgid": start.last_msgid,
                "unread": counts.get(gid, 0) if start.unread is None else start.unread,
                "after": start.after,
                "last_erasure": erasures.get(gid),
            }
            for gid, start in session.starts.items()
        ]
        return await self._connected(session, groups, session.silent)

    async def reconnected(self, session: "Session") -> dict[str, object]:
        """Return the same of a session that has begun before: where it is now."""
        points = {**session.resume_points, **session.cursors}
        after = {gid: point.msgid for gid, point in points.items() if point is not None and point.msgid is not None}
        counts = await self.chat.unread(session.uid)
        groups: list[dict[str, object]] = [
            {
                "gid": each.gid,
                "last_ack_msgid": each.last_ack_msgid,
                "last_msgid": each.last_msgid,
                "unread": each.unread,
                "after": msgids.unpack_offset(after[each.gid]) if each.gid in after else each.last_ack_msgid,
                "last_erasure": None,
            }
            for each in counts
        ]
        return await self._connected(session, groups, {*counts.silent, *session.silent})

    async def _connected(
        self, session: "Session", groups: list[dict[str, object]], silent: Collection[int]
    ) -> dict[str, object]:
        # A client's database is for one dataset. None while there is no data.
        dataset = await self.chat.performer.perform(queries.dataset())
        return {"uid": session.uid, "dataset": dataset, "groups": groups, "silent": sorted(silent)}

    def pause(self, session: "Session") -> None:
        self.gateway.pause(session)

    def resume(self, session: "Session") -> None:
        self.gateway.resume(session)

    # Calls.

    async def perform(self, request: Request, client: Client) -> Any:
        """Perform a call that came on a socket. Raise RpcError or ImError."""
        if request.method == "connect":
            given = arguments(METHODS["connect"].parameters, request.params)
            return await self._perform(request, await client.identify(given.get("token")), client)
        if client.identity is None:
            raise NotAuthenticated("the first call is `connect`, with a token")
        return await self._perform(request, client.identity, client)

    async def perform_http(self, request: Request, identity: Identity) -> Any:
        """Perform a call that came by HTTP. Raise RpcError or ImError."""
        if not identity.is_server and not self._rates.take(identity.uid):
            raise TooManyCalls("too many calls a second (IM_WEB_CALLS_PER_S): wait before the next")
        if self._http_calls >= HTTP_CALLS:
            raise TooManyCalls(f"{HTTP_CALLS} calls are in hand: send this one again")
        self._http_calls += 1
        try:
            return await self._perform(request, identity, None)
        finally:
            self._http_calls -= 1

    async def _perform(self, request: Request, identity: Identity, client: Client | None) -> Any:
        method = self._method(request)
        self.metrics.calls.add(1, method.name)
        try:
            return await self._permitted(method, request, identity, client)
        except (RpcError, ImError) as error:
            name = str(error.code) if isinstance(error, RpcError) else jsonrpc.public_name(error)
            self.metrics.errors.add(1, method.name, name)
            raise

    async def _permitted(self, method: Method, request: Request, identity: Identity, client: Client | None) -> Any:
        await self.access.permit(identity, request.method, request.params)
        uid = request.params.get("uid")
        if uid is None and not identity.is_server:
            uid = identity.uid
        return await method.perform(Caller(self, identity, uid, client, request.is_notification), request.params)

    def _method(self, request: Request) -> Method:
        method = self.methods.get(request.method)
        if method is None:
            self.metrics.calls.add(1, "unknown")
            self.metrics.errors.add(1, "unknown", str(METHOD_NOT_FOUND))
            raise RpcError(METHOD_NOT_FOUND, f"there is no method {request.method[:100]!r}")
        return method

    def folds(self, request: Request, text: bytes, client: Client) -> bool:
        """Take an ack that has no answer at once, if nothing has to be asked before: there are very many of them."""
        return self.access.is_default and self.acks.folds(request, text, client)

    def fault(self, method: str, error: Exception) -> RpcError:
        """Log a fault of the program, and return what its caller gets instead."""
        log.error("the method %s has failed", method, exc_info=error)
        return RpcError(INTERNAL_ERROR, "the server has failed: its log says why")

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that nobody waits for."""

        async def logged() -> None:
            try:
                await work
            except ImError as error:
                log.warning("%s", error)

        task = asyncio.create_task(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
