"""The ASGI application: WebSocket, HTTP calls, the page, and what operators ask."""

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib import resources
from ipaddress import ip_address
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from imcore.errors import ConfigurationError, ImError, NotAuthenticated, TooManyCalls
from imcore.web import jsonrpc, openrpc
from imcore.web.access import Authenticate, May
from imcore.web.asgi_socket import AsgiSocket
from imcore.web.auth import Identity, bearer_of
from imcore.web.health import redis_trouble, sql_trouble
from imcore.web.hub import Hub
from imcore.web.jsonrpc import INTERNAL_ERROR, INVALID_REQUEST, RpcError
from imcore.web.settings import WebSettings, origin_is_allowed

if TYPE_CHECKING:
    from imcore.aio import AsyncChat

_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_PAGE = {"": ("index.html", "text/html"), "imcore.js": ("imcore.js", "text/javascript")}
"""By path: the file of the page, and its type."""
_STYLE = re.compile(rb"<style[^>]*>(.*?)</style>", re.DOTALL)
_FROM_ELSEWHERE = (
    *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip", "via"),
    "origin",
)
"""Headers that a proxy adds, and a page."""


def app(
    chat: "AsyncChat | None" = None,
    *,
    authenticate: Authenticate | None = None,
    may: May | None = None,
    settings: WebSettings | None = None,
    demo: bool = False,
) -> Starlette:
    """Return the application, to be run alone or mounted in another one under any path.

    Without a `chat` it connects to the servers of the environment. `authenticate(token, headers)` replaces the check of
    tokens, and `may(identity, method, params)` what a caller may do; both may be async. It starts with its lifespan or
    with the first request. Where it is mounted, the parent ends it: `await app.state.hub.close()`. Raise
    ConfigurationError without `authenticate` and without a key (IM_WEB_KEY, IM_WEB_PUBLIC_KEY).
    """
    hub = Hub(chat, settings=settings, authenticate=authenticate, may=may, demo=demo)
    starlette = Starlette(
        routes=[
            *(Route(f"/{path}", _page(*file)) for path, file in _PAGE.items()),
            WebSocketRoute("/ws", _socket),
            Route("/rpc", _rpc, methods=["POST"]),
            Route("/openrpc.json", _openrpc),
            Route("/healthz", _alive),
            Route("/readyz", _ready),
            Route("/metrics", _metrics),
        ],
        lifespan=_lifespan,
    )
    starlette.add_middleware(SecurityHeaders)
    starlette.state.hub = hub
    return starlette


class SecurityHeaders:
    """Adds headers that keep a browser from reading anything else into an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = message.setdefault("headers", [])
                names = {name for name, _ in headers}
                if b"content-security-policy" not in names:
                    headers.append((b"content-security-policy", _NOTHING_ALLOWED.encode()))
                headers.extend(header for header in _SECURITY if header[0] not in names)
            await send(message)

        await self._app(scope, receive, send_with_headers)


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    hub: Hub = app.state.hub
    await hub.start()
    try:
        yield
    finally:
        await hub.close()


def _hub(connection: HTTPConnection) -> Hub:
    hub: Hub = connection.app.state.hub
    return hub


# The socket.


async def _socket(websocket: WebSocket) -> None:
    hub = _hub(websocket)
    headers = dict(websocket.headers)
    if not origin_is_allowed(headers, hub.settings):
        await websocket.send_denial_response(Response("a page of another host may not connect (IM_WEB_ORIGINS)", 403))
    elif hub.is_stopping:
        await websocket.send_denial_response(Response("the server ends", 503))
    else:
        await hub.start()
        await AsgiSocket(websocket).serve(hub, headers)


# Calls by HTTP.


async def _rpc(request: Request) -> Response:
    hub = _hub(request)
    headers = dict(request.headers)
    if not origin_is_allowed(headers, hub.settings):
        return _refusal(NotAuthenticated("a page of another host may not call (IM_WEB_ORIGINS)"), 403)
    if hub.is_stopping:
        return _refusal(RpcError(INTERNAL_ERROR, "the server ends: call again"), 503, {"retry-after": "1"})
    await hub.start()
    try:
        identity = await hub.access.authenticate(None, headers)
        if identity is None:
            raise NotAuthenticated("no token came: send `Authorization: Bearer ...`")
    except NotAuthenticated as error:
        challenge = 'Bearer realm="imcore"' + ', error="invalid_token"' * (bearer_of(headers) is not None)
        return _refusal(error, 401, {"www-authenticate": challenge})
    try:
        text = await _body(request, hub.settings)
    except RpcError as error:
        return _refusal(error, 413)
    except (TimeoutError, ClientDisconnect):
        return _refusal(RpcError(INVALID_REQUEST, "the request did not come in time"), 408)
    return await _answer(hub, identity, text)


async def _body(request: Request, settings: WebSettings) -> bytes:
    """Return the body. Raise RpcError as soon as it is too large, TimeoutError if it does not come."""
    most = settings.max_frame_bytes
    too_large = RpcError(INVALID_REQUEST, f"a request has at most {most} bytes (IM_WEB_MAX_FRAME_BYTES)")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    body = bytearray()
    async with asyncio.timeout(settings.handshake_ms / 1000):
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    return bytes(body)


async def _answer(hub: Hub, identity: Identity, text: bytes) -> Response:
    try:
        call = jsonrpc.parse(text)
    except RpcError as error:
        return _refusal(error, 200)
    status, headers = 200, {}
    try:
        answer = jsonrpc.result(await hub.perform_http(call, identity), call.id)
    except TooManyCalls as error:
        answer, status, headers = jsonrpc.failure(error, call.id), 429, {"retry-after": "1"}
    except (RpcError, ImError) as error:
        answer = jsonrpc.failure(error, call.id)
    except Exception as error:
        answer = jsonrpc.failure(hub.fault(call.method, error), call.id)
    return Response(status_code=204) if call.is_notification else _json(answer, status, headers)


def _refusal(error: RpcError | ImError, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return _json(jsonrpc.failure(error, error.id if isinstance(error, RpcError) else None), status, headers)


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, {"cache-control": "no-store", **(headers or {})}, "application/json")


# What operators and tools ask.


async def _openrpc(request: Request) -> Response:
    return JSONResponse(openrpc.document(_hub(request).methods))


async def _alive(_: Request) -> Response:
    return JSONResponse({"ok": True})


async def _ready(request: Request) -> Response:
    hub = _hub(request)
    if hub.is_stopping:
        return JSONResponse({"ok": False, "stopping": True}, 503)
    await hub.start()
    redis, sql = await asyncio.gather(redis_trouble(hub.chat), sql_trouble(hub.chat))
    what = {"redis": redis or "ok", "sql": sql or "ok", "stopping": False}
    is_ready = redis is None
    return JSONResponse({"ok": is_ready, **what}, 200 if is_ready else 503)


async def _metrics(request: Request) -> Response:
    hub = _hub(request)
    headers = dict(request.headers)
    if not _is_local(request, headers):
        try:
            identity = await hub.access.authenticate(None, headers)
        except NotAuthenticated as error:
            return _refusal(error, 401, {"www-authenticate": 'Bearer realm="imcore"'})
        if identity is None or not identity.is_server:
            return _refusal(NotAuthenticated("metrics are for this machine, or need a server's token"), 403)
    try:
        kind, body = hub.metrics.registry.exposition(headers.get("accept", ""))
    except ConfigurationError as error:
        return Response(str(error), 501)
    return Response(body, headers={"content-type": kind})


def _is_local(request: Request, headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from this machine itself, and not through a proxy or a page on it."""
    if request.client is None or any(name in headers for name in _FROM_ELSEWHERE):
        return False
    return all(map(_is_loopback, (request.client.host, request.url.hostname or "")))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


# The page.


def _page(file: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    body = (resources.files("imcore.web") / "page" / file).read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache", "content-security-policy": _policy(body)}

    async def endpoint(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, 200, headers, kind)

    return endpoint


def _policy(page: bytes) -> str:
    """Return the policy of a page: its own module, its own styles as they are in the file, and this host."""
    hashes = [base64.b64encode(hashlib.sha256(style).digest()).decode() for style in _STYLE.findall(page)]
    styles = " ".join(["'self'", *(f"'sha256-{each}'" for each in hashes)])
    return f"{_NOTHING_ALLOWED}; script-src 'self'; connect-src 'self'; img-src 'self' data:; style-src {styles}"
