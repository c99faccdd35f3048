"""A WebSocket gateway of one's own on imcore, with a protocol of its own, as integrators write it.

Run: APP_JWT_SECRET=... uvicorn tests.helpers.own_gateway:app
"""

import asyncio
import json
import logging
import os
import signal
import time
from contextlib import asynccontextmanager

import jwt
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from imcore import AsyncChat, Ended, Gap, Joined, Left, NewMessage, PositionMoved, Rewound, errors

SECRET = os.environ["APP_JWT_SECRET"]
HIGH, LOW = 500, 100  # frames that wait for a slow client


class Client:
    """A socket and the frames that wait for it. Its session is paused while there are many."""

    def __init__(self, socket):
        self.socket, self.session, self.out, self.paused = socket, None, asyncio.Queue(), False

    def push(self, frame):
        self.out.put_nowait(frame)
        if self.out.qsize() > HIGH and not self.paused:
            self.paused = True
            gateway().pause(self.session)

    async def write(self):
        while True:
            frame = await self.out.get()
            if frame is None:  # the user was erased
                await self.socket.close(4401, "erased")
                raise WebSocketDisconnect(4401)
            await asyncio.wait_for(self.socket.send_text(frame), 30)
            if self.paused and self.out.qsize() < LOW:
                self.paused = False
                gateway().resume(self.session)


def chat():
    return app.state.chat


def gateway():
    return app.state.gateway


def message(said):
    return {
        "gid": said.gid,
        "msgid": said.msgid,
        "from": said.sender_uid,
        "text": said.content,
        "at": said.time.isoformat(),
        "cid": said.client_msgid,
        "recalled": said.recalled,
        "recalls": said.recalls,
        "of": said.recipients,
    }


def frame_of(event):
    if isinstance(event, NewMessage):
        return {"t": "msg", **message(event.message)}
    if isinstance(event, Gap):
        return {"t": "gap", "gid": event.gid, "from": event.from_msgid, "to": event.to_msgid}
    if isinstance(event, Rewound):
        return {"t": "rewound", "gid": event.gid, "after": event.after_msgid}
    if isinstance(event, Joined | Left):
        return {"t": "joined" if isinstance(event, Joined) else "left", "gid": event.gid}
    if isinstance(event, PositionMoved):
        return {"t": "position", "gid": event.gid, "msgid": event.last_ack_msgid}
    return {"t": "read", "of": [[each.gid, each.msgid, each.read, each.unread] for each in event.receipts]}


async def deliver():
    try:
        while True:
            for event in await gateway().poll():
                frame = None if isinstance(event, Ended) else json.dumps(frame_of(event))  # once for all
                for session in event.sessions:
                    session.tag.push(frame)
                    if hasattr(event, "receipts"):
                        gateway().confirm_receipts(session, event.receipts)
    except Exception:  # the server would go on without it, and look sound: a new one does better
        logging.exception("delivery has failed")
        signal.raise_signal(signal.SIGTERM)


@asynccontextmanager
async def lifespan(app):
    async with AsyncChat.connect() as app.state.chat:
        gateway = chat().gateway(acks="client", ack_interval_s=0.05)
        async with gateway as app.state.gateway, asyncio.TaskGroup() as tasks:
            delivering = tasks.create_task(deliver())
            yield
            delivering.cancel()


async def token(request):  # stands for the product's login
    return PlainTextResponse(
        jwt.encode({"sub": request.path_params["uid"], "exp": time.time() + 3600}, SECRET, "HS256")
    )


async def health(request):
    try:
        await chat().online(["nobody"])
    except errors.ImError as error:
        return JSONResponse({"ok": False, "why": str(error)}, 503)
    return JSONResponse({"ok": True})


async def unread(uid, asked):
    return {"unread": [[each.gid, each.unread] for each in await chat().unread(uid)]}


async def history(uid, asked):
    page = await chat().history(uid, asked["gid"], before=asked.get("before"), limit=int(asked.get("limit", 50)))
    tallies = {each.msgid: each for each in await chat().tallies(asked["gid"], [said.msgid for said in page.messages])}
    counts = ((said, tallies.get(said.msgid)) for said in page.messages)
    messages = [message(said) | ({"read": each.read, "unread": each.unread} if each else {}) for said, each in counts]
    return {"messages": messages, "more": page.older}


async def send(uid, asked):
    sent = await chat().send(asked["gid"], asked["text"], sender_uid=uid, client_msgid=asked["cid"])
    return {"msgid": sent.msgid, "of": sent.recipients}


async def tallies(uid, asked):
    await chat().member(asked["gid"], uid)
    return {
        "of": [
            [each.gid, each.msgid, each.read, each.unread]
            for each in await chat().tallies(asked["gid"], asked["msgids"])
        ]
    }


async def who(uid, asked):
    await chat().member(asked["gid"], uid)
    status = await chat().message_status(asked["gid"], asked["msgid"])
    read_by = [[each.uid, each.read_at and each.read_at.isoformat()] for each in status.read_by]
    return {"read_by": read_by, "unread_by": status.unread_by}


async def presence(uid, asked):
    await chat().member(asked["gid"], uid)
    return {"members": [[each.uid, each.online] async for each in chat().members(asked["gid"])]}


async def recall(uid, asked):
    await chat().recall(asked["gid"], asked["msgid"], by=uid)
    return {}


CALLS = {call.__name__: call for call in (unread, history, send, tallies, who, presence, recall)}


async def answer(client, uid, asked):
    try:
        reply = {"t": "ok", **await CALLS[asked["t"]](uid, asked)}
    except errors.ImError as error:
        again = isinstance(error, errors.TryAgain)
        reply = {"t": "error", "code": type(error).__name__, "why": str(error), "again": again}
    except (KeyError, TypeError, ValueError) as error:
        reply = {"t": "error", "code": "BadRequest", "why": repr(error), "again": False}
    client.push(json.dumps({**reply, "id": asked.get("id")}))


async def receive(client, uid, tasks):
    while True:
        asked = await client.socket.receive_json()
        if asked.get("t") == "ack":  # shown on the screen, wherever it came from
            gateway().received(client.session, asked["gid"], asked["msgid"])
        elif asked.get("t") == "send":  # in the order they came
            await answer(client, uid, asked)
        else:
            tasks.create_task(answer(client, uid, asked))


async def ws(socket):
    await socket.accept()
    client = Client(socket)
    try:
        hello = await asyncio.wait_for(socket.receive_json(), 5)
        uid = jwt.decode(hello["token"], SECRET, ["HS256"])["sub"]
        client.push(json.dumps({"t": "welcome", "uid": uid, "pid": os.getpid()}))
        client.session = await gateway().open(uid, after=hello.get("places"), most=200, tag=client)
    except (TimeoutError, jwt.InvalidTokenError, LookupError, TypeError, ValueError, errors.ImError) as error:
        return await socket.close(4401, str(error)[:100])
    clean = False
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(client.write())
            tasks.create_task(receive(client, uid, tasks))
    except* WebSocketDisconnect as gone:
        clean = gone.exceptions[0].code == 1001
    except* TimeoutError:
        await socket.close(1013, "too slow")
    except* (LookupError, TypeError, ValueError, errors.InvalidInput) as error:
        await socket.close(1003, str(error)[:100])
    finally:
        await gateway().end(client.session, clean=clean)


app = Starlette(
    routes=[
        Route("/token/{uid}", token),
        Route("/healthz", health),
        WebSocketRoute("/ws", ws),
    ],
    lifespan=lifespan,
)
