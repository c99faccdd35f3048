"""The network side in unit tests: a socket, a chat and a gateway without anything behind them."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

from imcore.errors import NotMember
from imcore.gateway.fanout import Recipients, Session
from imcore.model.values import Ack, Group, HistoryPage, Member, Message, MessageTally, Unread, UnreadCounts
from imcore.web.client import Client
from imcore.web.flow import Frame
from imcore.web.hub import Hub
from imcore.web.settings import WebSettings

KEY = "0123456789abcdef0123456789abcdef"
T1, T2 = "1767225600000-0", "1767225600001-0"


def token(uid: str = "ann", ttl_s: float = 600, key: str = KEY, **claims: object) -> str:
    """A token for a user, as `im token` makes it; a claim of None is left out."""
    now = time.time()
    payload = {"sub": uid, "iat": int(now), "exp": now + ttl_s, **claims}
    return jwt.encode({name: value for name, value in payload.items() if value is not None}, key, "HS256")


def web_settings(**settings: object) -> WebSettings:
    return WebSettings.from_env({"IM_WEB_KEY": KEY, **{f"IM_WEB_{k.upper()}": str(v) for k, v in settings.items()}})


def request(method: str, id: object = 1, **params: object) -> bytes:  # noqa: A002
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


def notification(method: str, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


class FakeSocket:
    """Keeps what it is sent. With `is_full` it has no room, and says so as real sockets do."""

    can_ping = True

    def __init__(self) -> None:
        self.remote = "test"
        self.pings: list[bytes] = []
        self.frames: list[Frame] = []
        self.buffered = 0
        self.is_full = False
        self.closed: tuple[int, str] | None = None
        self.client: Client | None = None

    def send(self, frame: Frame) -> None:
        if self.closed:
            return
        self.frames.append(frame)
        if self.is_full:
            self.buffered += len(frame.text)
            if self.client:
                self.client.writable(False)

    def ping(self, payload: bytes) -> None:
        self.pings.append(payload)

    def close(self, code: int, reason: str) -> None:
        assert len(reason.encode()) <= 123
        if self.closed is None:
            self.closed = (code, reason)
            asyncio.get_running_loop().call_soon(lambda: self.client and self.client.lost())

    def drain(self) -> None:
        """Take all that was sent."""
        self.is_full, self.buffered = False, 0
        assert self.client
        self.client.writable(True)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(frame.text) for frame in self.frames]

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [each["error"] for each in self.sent if "error" in each]


@dataclass
class FakeGateway:
    """Hands over the events that a test puts in."""

    events: "asyncio.Queue[list[Any]]" = field(default_factory=asyncio.Queue)
    sessions: list[Session] = field(default_factory=list)
    acked: list[tuple[str, str, str]] = field(default_factory=list)
    acked_privately: list[tuple[str, str, str]] = field(default_factory=list)
    arrived: list[tuple[str, str, str]] = field(default_factory=list)
    fetches: list[tuple[str, str, str | None]] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    async def open(self, uid: str, *, tag: object = None, **options: object) -> Session:
        await asyncio.sleep(0)
        session = Session(uid, tag=tag)
        self.sessions.append(session)
        self.options = options
        return session

    async def end(self, session: Session) -> None:
        self.calls.append(("end", session.uid))

    async def poll(self, timeout_s: float) -> list[Any]:
        return await self.events.get()

    async def close(self) -> None:
        self.calls.append(("close", ""))

    def received(self, session: Session, gid: str, msgid: str, private: bool = False) -> None:
        (self.acked_privately if private else self.acked).append((session.uid, gid, msgid))

    def delivered(self, session: Session, gid: str, msgid: str) -> None:
        self.arrived.append((session.uid, gid, msgid))

    def fetched(self, session: Session, gid: str, page: HistoryPage, *, before: str | None = None) -> None:
        self.fetches.append((session.uid, gid, before))

    async def send_acks(self, session: Session) -> None:
        self.calls.append(("send_acks", session.uid))

    def confirm_receipts(self, session: Session, receipts: Iterable[object]) -> None:
        self.calls += [("confirm", session.uid) for _ in receipts]

    def pause(self, session: Session) -> None:
        self.calls.append(("pause", session.uid))

    def resume(self, session: Session) -> None:
        self.calls.append(("resume", session.uid))


class FakePerformer:
    """Answers the queries that have no method of their own: for the name of the data, and for erasures, of none."""

    async def perform(self, effects: Generator[Any, Any, Any]) -> Any:
        effects.close()
        return "data" if effects.__name__ == "dataset" else {}


class FakeChat:
    """A group `team` of ann and bob. Sends take `delay` turns of the loop."""

    def __init__(self) -> None:
        self.fake_gateway = FakeGateway()
        self.performer = FakePerformer()
        self.log: list[tuple[Any, ...]] = []
        self.running = self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def gateway(self, **options: object) -> FakeGateway:
        assert options["acks"] == "client"
        return self.fake_gateway

    async def open_database(self) -> None:
        pass

    async def close(self) -> None:
        raise AssertionError("whoever gives a chat closes it")

    async def _note(self, *what: Any) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            self.log.append(what)
        finally:
            self.running -= 1

    async def member(self, gid: str, uid: str) -> Member:
        if gid != "team" or uid not in {"ann", "bob"}:
            raise NotMember(f"{uid!r} is not a member of {gid!r}")
        return Member(gid, uid, T1, 0, False)

    async def send(self, gid: str, content: str, *, sender_uid: str, **options: Any) -> Message:
        await self.member(gid, sender_uid)
        await self._note("send", gid, content, sender_uid)
        return Message(gid, T2, 2, sender_uid, content, options.get("client_msgid"), recipients=1)

    async def status(self, gid: str, *, limit: int, by: str) -> list[MessageTally]:
        await self.member(gid, by)
        return []

    async def ack(self, uid: str, gid: str, msgid: str | None = None, *, private: bool = False) -> Ack:
        await self._note("ack", uid, gid, msgid)
        return Ack(gid, uid, None if private else msgid or T1, True)

    async def mark_unread(self, uid: str, gid: str, msgid: str) -> Unread:
        await self._note("mark", uid, gid, msgid)
        return Unread(gid, 1, T2, T1, marked=True)

    async def unmark(self, uid: str, gid: str) -> Unread:
        await self._note("unmark", uid, gid)
        return Unread(gid, 0, T2, T1)

    async def unread(self, uid: str) -> UnreadCounts:
        return UnreadCounts([Unread("team", 1, T2, T1)])

    async def groups_of(self, uid: str) -> list[str]:
        return ["team"]

    async def group(self, gid: str) -> Group:
        await self._note("group", gid)
        return Group(gid, 2, 2, T2)

    async def create_group(self, gid: str, uids: Iterable[str]) -> Group:
        return Group(gid, len(list(uids)), 0, None)

    async def history(self, uid: str, gid: str, **options: Any) -> HistoryPage:
        await self.member(gid, uid)
        return HistoryPage((message(),), older=False, newer=False)

    async def online(self, uids: Iterable[str]) -> set[str]:
        return set()


def message(msgid: str = T2, content: str = "hi") -> Message:
    return Message("team", msgid, 2, "bob", content)


class Setup:
    """A hub of fakes, and clients on it."""

    def __init__(self, **settings: object) -> None:
        self.chat = FakeChat()
        self.hub = Hub(self.chat, settings=web_settings(**settings))  # type: ignore[arg-type]
        self.gateway = self.chat.fake_gateway

    def client(self, headers: Mapping[str, str] | None = None) -> FakeSocket:
        socket = FakeSocket()
        socket.client = Client(self.hub, socket, headers)
        return socket

    async def connected(self, uid: str = "ann", **params: object) -> FakeSocket:
        socket = self.client()
        await self.ask(socket, request("connect", token=token(uid), **params))
        assert "result" in socket.sent[-1], socket.sent
        socket.frames.clear()
        return socket

    async def ask(self, socket: FakeSocket, *texts: bytes) -> list[dict[str, Any]]:
        """Send texts, and return what came once nothing is in hand any more."""
        before = len(socket.frames)
        assert socket.client
        for text in texts:
            socket.client.received(text)
        await socket.client.finish()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return socket.sent[before:]

    async def push(self, *events: Any) -> None:
        await self.gateway.events.put(list(events))
        for _ in range(3):
            await asyncio.sleep(0)

    def recipients(self) -> Recipients:
        return Recipients(self.gateway.sessions)


def with_setup(story: Callable[[Setup], Awaitable[None]], **settings: object) -> None:
    """Play a story on a hub of fakes that has been started."""

    async def play() -> None:
        setup = Setup(**settings)
        await setup.hub.start()
        try:
            await asyncio.wait_for(story(setup), 30)
        finally:
            await setup.hub.close()

    asyncio.run(play())
