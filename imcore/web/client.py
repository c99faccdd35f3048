"""One connected client, whatever its socket is made of: its token, its session, its calls, and what it is told.

A kind of socket makes a `Client` once the handshake is done, and tells it what comes: `received`, `refused_frame`,
`writable`, `lost`. All of it happens in the loop's thread, and none of it waits.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from imcore.errors import ImError, InvalidInput, NotAllowed, NotAuthenticated, TooManyCalls, TooManySockets, TryAgain
from imcore.web import jsonrpc
from imcore.web.auth import Identity, bearer_of
from imcore.web.flow import Expiry, Frame, Lane, Nobody, RateLimit, SendQueue, Socket
from imcore.web.jsonrpc import Request, RpcError
from imcore.web.pings import Handed

if TYPE_CHECKING:
    from imcore.gateway.fanout import Session
    from imcore.web.hub import Hub

UNAUTHORIZED, TOO_SLOW, TOO_MANY = 4401, 4408, 4429
GOING_AWAY, TOO_LARGE, BINARY, NOT_UTF8, BROKEN = 1001, 1009, 1003, 1007, 1011
"""Codes of a close frame; those above 4000 are ours."""

MOST_REASON_BYTES = 123
"""Of a close frame (RFC 6455, 5.5)."""

SIDE_BY_SIDE = 8
"""Calls of one client that run at once. Those that change something run one after the other."""
MOST_WAITING = 256
"""Calls of one client that wait."""
ACK_COST = 0.1
"""What an ack without an answer counts as, among calls."""
ACKS_AT_ONCE = 20
"""So many acks are counted with one look at the clock."""


class Client:
    """One client on one socket. `headers` are those of the handshake, with names in lower case."""

    def __init__(self, hub: "Hub", socket: Socket, headers: Mapping[str, str] | None = None) -> None:
        settings = hub.settings
        self.hub = hub
        self.socket = socket
        self.identity: Identity | None = None
        self.session: Session | None = None
        self._headers = headers or {}
        self._out = SendQueue(
            socket, settings.max_buffered_bytes, settings.patience_ms / 1000, self._slow, self._too_slow
        )
        self._handed = Handed(self, hub.pings) if socket.can_ping else None
        self._held: list[Frame] | None = []
        """Notifications until `connect` is answered; None from then on."""
        self._held_bytes = 0
        self._most_held_bytes = settings.max_buffered_bytes // 4
        self._is_slow = self._is_paused = False
        """Whether much waits for the socket, and whether the session is paused."""
        self._in_order, self._side_by_side = Lane(1, MOST_WAITING), Lane(SIDE_BY_SIDE, MOST_WAITING)
        self._rate = RateLimit(settings.calls_per_s, settings.calls_burst)
        self._acks_admitted = 0
        """How many of the next acks are counted already."""
        self._expiry = Expiry(self._notice, partial(self.close, UNAUTHORIZED, "the token has expired"))
        self._is_closed = False
        self._deadline: asyncio.TimerHandle | None = None
        hub.add(self)
        self._begin(settings.handshake_ms / 1000)

    # What the socket tells.

    def received(self, text: bytes) -> None:
        """Handle a text frame."""
        ack = self.hub.acks.known.get(text)
        if ack and self.session and not self._is_closed:  # by far the most frequent one
            if self._acks_admitted or self._admits_acks():
                self._acks_admitted -= 1
                self.hub.acks.add(ack, self.session)
        elif not self._is_closed:
            self._parse(text)

    def _parse(self, text: bytes) -> None:
        try:
            request = jsonrpc.parse(text)
        except RpcError as error:
            if self._admits(error.id):
                self._refuse(error, error.id)
        else:
            self._called(request, text)

    def refused_frame(self, code: int, reason: str) -> None:
        """Handle a frame that cannot be taken, as a binary one or one that is too large: one error, then the end."""
        self._refuse(RpcError(jsonrpc.INVALID_REQUEST, reason), None)
        self.close(code, reason)

    def writable(self, has_room: bool) -> None:
        """Note whether the socket has room: False above its high-water mark, True below its low-water mark."""
        if not self._is_closed:
            self._out.writable(has_room)
            self._hold_calls(not self._out.has_room)  # what they answer would wait here

    def ponged(self, payload: bytes) -> None:
        """Note that a pong has come."""
        if self._handed and not self._is_closed:
            self._handed.ponged(payload, self.hub.gateway)

    def lost(self) -> None:
        """Note that the socket is gone. Calls that change something go on; a session acks what it was told."""
        self._end("client")
        self._side_by_side.stop()
        self.hub.gone(self)

    # What the hub tells.

    def push(self, frame: Frame) -> None:
        """Send a notification, after the answer to `connect`."""
        if self._is_closed:
            return
        if self._held is None:
            message, handed = frame.message, self._handed
            if message is not None and handed is not None:
                handed.messages[message[0]] = message
                if not handed.is_watched:
                    handed.watch()
            self._out.send(frame)
        else:
            self._held.append(frame)
            self._held_bytes += len(frame.text)
            self._pause_or_resume()

    @property
    def is_sent(self) -> bool:
        """Whether all that was pushed was given to the socket."""
        return self._held is None and self._out.is_empty

    def confirmed(self, gid: str, msgid: str) -> None:
        """Note that the client has said that it has a message, and all before it."""
        if self._handed:
            self._handed.confirmed(gid, msgid)

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what was sent."""
        if not self._is_closed:
            self._end(str(code))
            self._side_by_side.stop()
            self.socket.close(code, reason.encode()[:MOST_REASON_BYTES].decode(errors="ignore"))

    async def finish(self) -> None:
        """Wait for the calls in hand."""
        self._hold_calls(False)
        await asyncio.gather(self._in_order.ended(), self._side_by_side.ended())

    # Connecting.

    async def identify(self, token: str | None) -> Identity:
        """Return who a token names; without one, who the client is. Raise NotAuthenticated."""
        if token is None and self.identity:
            return self.identity
        identity = await self.hub.access.authenticate(token, self._headers)
        if identity is None:
            raise NotAuthenticated("no valid token came: give one in `connect` or as `Authorization: Bearer ...`")
        if self.identity and identity.uid != self.identity.uid:
            raise NotAllowed(f"this socket is {self.identity.uid!r}'s: connect anew for another user")
        return identity

    async def connect(self, identity: Identity, uid: str, **options: Any) -> dict[str, object]:
        """Begin the session, or go on with a new token."""
        given = {name: value for name, value in options.items() if value is not None}
        if self.session is None:
            self._accept(identity)
            return await self._connect_anew(uid, given)
        if uid != self.session.uid:
            raise NotAllowed(f"this session is {self.session.uid!r}'s: connect anew for another user")
        if given:
            raise InvalidInput("the session has begun: `connect` takes only a new token now")
        self._accept(identity)
        return await self.hub.reconnected(self.session)

    async def _connect_anew(self, uid: str, given: Mapping[str, Any]) -> dict[str, object]:
        if self._is_closed:
            raise TryAgain("the socket is gone")
        # Before the session reads any message: what it gets with a name that is erased later is from before this.
        after = given.get("after") or {}
        erasures = await self.hub.erasures(after) if after else {}
        session = self.session = await self.hub.open(self, uid, **given)
        if self._is_closed:  # meanwhile
            self.hub.end(session)
        self._pause_or_resume()
        try:
            return await self.hub.connected(session, after, erasures)
        except BaseException:
            if not self._is_closed:
                self._withdraw(session)
            raise

    def _withdraw(self, session: "Session") -> None:
        """End a session that the client does not know of, so that it may connect again."""
        self.session, self._held, self._held_bytes, self._is_paused = None, [], 0, False
        session.tag = Nobody()
        self.hub.end(session)

    def _accept(self, identity: Identity) -> None:
        if self._is_closed:
            return
        self.identity = identity
        self._headers = {}
        self._expiry.set(identity.expires_at)
        self._stop_deadline()

    def _begin(self, handshake_s: float) -> None:
        reason = f"no token within {handshake_s:g} s: `connect` is the first call"
        self._deadline = asyncio.get_running_loop().call_later(handshake_s, self.close, UNAUTHORIZED, reason)
        if self.hub.is_full:
            self._refuse(TooManySockets("the server has as many sockets as it takes (IM_WEB_MAX_SOCKETS)"), None)
            self.close(TOO_MANY, "too many sockets")
        elif self.hub.is_stopping:
            self.close(GOING_AWAY, "the server ends")
        elif self.hub.access.reads_headers(self._headers):
            self._in_order.add(self._authenticate_by_headers)

    async def _authenticate_by_headers(self) -> None:
        token = bearer_of(self._headers)
        try:
            identity = await self.hub.access.authenticate(token, self._headers)
        except ImError as error:
            self._refuse(error, None)
            if isinstance(error, NotAuthenticated):
                self.close(UNAUTHORIZED, str(error))
            return
        if identity:
            self._accept(identity)

    # Calls.

    def _called(self, request: Request, text: bytes) -> None:
        method = self.hub.methods.get(request.method)
        if request.is_notification and method is not None and method.is_folded:
            if not self._acks_admitted and not self._admits_acks():
                return
            self._acks_admitted -= 1
            if self.hub.folds(request, text, self):
                return
        elif not self._admits(request.id, request.is_notification):
            return
        if not self.hub.is_stopping:
            self._enqueue(request, in_order=method is None or method.is_ordered)

    def _enqueue(self, request: Request, *, in_order: bool) -> None:
        connects = self.identity is None or (self._held is not None and not self._in_order.is_idle)
        lane = self._in_order if in_order or connects else self._side_by_side
        if not lane.add(partial(self._perform, request)) and not request.is_notification:
            self._refuse(TooManyCalls(f"{MOST_WAITING} calls of this socket wait: send this one again"), request.id)

    async def _perform(self, request: Request) -> None:
        answer: bytes | None = None
        try:
            answer = jsonrpc.result(await self.hub.perform(request, self), request.id)
        except (RpcError, ImError) as error:
            answer = jsonrpc.failure(error, request.id)
            self._close_after(error)
        except Exception as error:
            answer = jsonrpc.failure(self.hub.fault(request.method, error), request.id)
        if not request.is_notification and not self._is_closed:
            self._out.send(Frame(answer), is_answer=True)
        if request.method == "connect" and self.session and self._held is not None:
            self._release()

    def _close_after(self, error: Exception) -> None:
        """Close once the error was sent, if the client may not stay."""
        loop = asyncio.get_running_loop()
        if isinstance(error, NotAuthenticated) and self.identity is None:
            loop.call_soon(self.close, UNAUTHORIZED, str(error))
        elif isinstance(error, TooManySockets):
            loop.call_soon(self.close, TOO_MANY, str(error))

    def _release(self) -> None:
        held, self._held, self._held_bytes = self._held, None, 0
        for frame in held or ():
            self.push(frame)
        if self._handed and self.session:
            self._handed.begin(self.session)
        self._pause_or_resume()

    def _admits(self, id_: jsonrpc.Id, is_notification: bool = False) -> bool:
        """Count a call; return whether it is within the limit. If not, refuse it, and at last the client."""
        if self._rate.take():
            return True
        if self._rate.is_flooded:
            self._flooded()
        elif not is_notification:
            self._refuse(TooManyCalls("too many calls a second (IM_WEB_CALLS_PER_S): wait before the next"), id_)
        return False

    def _admits_acks(self) -> bool:
        """Count the next acks that have no answer. None is refused for its number: a receipt would be missing."""
        if self._rate.take(ACK_COST * ACKS_AT_ONCE) or not self._rate.is_flooded:
            self._acks_admitted = ACKS_AT_ONCE
            return True
        self._flooded()
        return False

    def _flooded(self) -> None:
        self.close(TOO_MANY, "too many calls a second, and refusals did not help")

    def _refuse(self, error: RpcError | ImError, id_: jsonrpc.Id) -> None:
        if not self._is_closed:
            self._out.send(Frame(jsonrpc.failure(error, id_)))

    # The end.

    def _hold_calls(self, are_held: bool) -> None:
        self._in_order.hold(are_held)
        self._side_by_side.hold(are_held)

    def _slow(self, is_slow: bool) -> None:
        self._is_slow = is_slow
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        """Let no more come while much waits for the socket, or for the answer to `connect`."""
        has_to_wait = self._is_slow or self._held_bytes > self._most_held_bytes
        if self.session and has_to_wait != self._is_paused and not self._is_closed:
            self._is_paused = has_to_wait
            (self.hub.pause if has_to_wait else self.hub.resume)(self.session)

    def _too_slow(self) -> None:
        self.close(TOO_SLOW, "the socket takes too little of what is sent")

    def _notice(self, seconds_left: float) -> None:
        self.push(Frame(jsonrpc.notification("expiring", {"expires_in_s": round(seconds_left)})))

    def _stop_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, code: str) -> None:
        if self._is_closed:
            return
        self.hub.metrics.closes.add(1, code)
        self._is_closed = True
        self._stop_deadline()
        self._expiry.stop()
        self._out.stop()
        self._hold_calls(False)
        self._held = self._handed = None
        if self.session:
            self.hub.end(self.session)
