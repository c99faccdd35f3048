"""Twin worlds: everybody does the same in both, except one user, who reads in private and marks as they like.

The clients of that user do the same in both worlds, too: they begin sessions, and confirm and fetch messages. What
anybody else gets must be the same in both, to the last version number. Msgids are those of each world's own server, so
they are compared by their places.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import ImError
from imcore.gateway.fanout import Event, NewMessage, Session
from imcore.gateway.gateway import Gateway
from imcore.gateway.request import StartMode
from tests.helpers.deadline import wait_until
from tests.helpers.workers import run_workers

READER = "reader"
"""The user with something to hide."""
OTHERS = ("ann", "bob", "cleo")
GIDS = ("team", "home")
ASKERS = ("sender", "members")
STARTS: tuple[StartMode, ...] = ("unread", "live", "live", "join")
_OFTEN = ["send", "ack", "confirm"] * 3
_SELDOM = ["direct", "arrive", "leave", "join", "recall", "policy", "receipts", "open", "open", "open", "fetch"]


class World:
    """One of the two: a system, and live sessions of all."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._places: dict[tuple[str, str], int] = {}
        """By gid and msgid, the seq of a message."""
        for gid in GIDS:
            chat.create_group(gid, [READER, *OTHERS])
        self.gateway: Gateway = chat.gateway(acks="client", ack_interval_s=0.001)
        self._frames: list[tuple[str, str, str, Any]] = []
        self._others = [self.gateway.open(uid, tag=uid) for uid in OTHERS]
        self._reader: Session | None = None
        self.frames()

    def msgid(self, gid: str, back: int) -> str | None:
        """The msgid of the message that is this many before the newest."""
        tallies = self.chat.status(gid, limit=back + 1)
        return tallies[0].message.msgid if len(tallies) > back else None

    def open(self, start: StartMode, after: int | None, most: int | None, by: str) -> None:
        """Begin a session of the reader, at `start` or after the message that is so many before the newest of a group.

        Then somebody sends a message to each group, and the client confirms it.
        """
        points = {} if after is None else {gid: self.msgid(gid, after) or "0-0" for gid in GIDS}
        if self._reader:
            self.gateway.end(self._reader)
        self._reader = self.gateway.open(READER, start=start, after=points, most=most)
        self.settle()
        for gid in [gid for gid in self.chat.groups_of(by) if gid in GIDS]:
            self.chat.send(gid, "the first of a session", sender_uid=by)
            self.confirm(gid, 0)

    def confirm(self, gid: str, back: int) -> None:
        """The client of the reader says that it has a message, as a pong would; perhaps it was not handed this one."""
        msgid = self.msgid(gid, back)
        if msgid and self._reader:
            self.settle()
            self.gateway.delivered(self._reader, gid, msgid)
            self.settle()

    def fetch(self, gid: str, back: int, limit: int) -> None:
        """The client of the reader gets a page of history."""
        before = self.msgid(gid, back)
        page = self.chat.history(READER, gid, before=before, limit=limit)
        if self._reader:
            self.gateway.fetched(self._reader, gid, page, before=before)

    def read(self, gid: str, msgid: str | None, *, private: bool) -> None:
        """The reader reads in private, in a session if there is one."""
        if msgid and self._reader:
            self.gateway.received(self._reader, gid, msgid, private)
            self.settle()
        else:
            self.chat.ack(READER, gid, msgid, private=private)

    def settle(self) -> None:
        """Poll until all sessions have all messages, and what they have confirmed is sent."""
        groups = {
            uid: {gid: self.chat.group(gid).last_msgid for gid in self.chat.groups_of(uid)} for uid in [READER, *OTHERS]
        }

        def is_settled() -> bool:
            self._poll(0.002)
            core = self.gateway._core
            return core._acks.due() == math.inf and all(
                session.is_synced
                and session.cursors.keys() == groups[session.uid].keys()
                and all(_is_there(session, gid, last) for gid, last in groups[session.uid].items())
                for session in (self._others if self._reader is None else [*self._others, self._reader])
            )

        wait_until(is_settled)

    def _poll(self, timeout_s: float) -> bool:
        events = self.gateway.poll(timeout_s)
        self._frames += [
            (session.uid, type(event).__name__, _gid_of(event), self._frame(event))
            for event in events
            for session in event.sessions
            if session.uid != READER
        ]
        return bool(events)

    def frames(self) -> list[Any]:
        """What has been pushed to the sessions of the others since, by user, kind and group, and then in order."""
        idle = 0
        while idle < 2:
            idle = 0 if self._poll(0.05) else idle + 1
        frames, self._frames = self._frames, []
        return sorted(frames, key=lambda frame: frame[:3])  # the sort keeps the order of each user's frames of a group

    def _frame(self, event: Event) -> Any:
        if isinstance(event, NewMessage):
            return self.plain(event.message)
        return [self.plain(value, getattr(event, "gid", "")) for value in event[1:]]

    def answers(self, uid: str) -> Iterator[Any]:
        """Yield all that can be asked by a user, or by an operator, as far as it is about anybody but the reader."""
        chat = self.chat
        yield "unread", self.plain(chat.unread(uid))
        yield "pull", self.plain(chat.pull(uid))
        yield "receipts", self.plain(chat.receipts(uid))
        for gid in chat.groups_of(uid):
            yield "history", self.plain(chat.history(uid, gid, limit=100))
            yield "first unread", self.plain(chat.history(uid, gid, first_unread=True, limit=3))
            yield "tallies", self._asked(lambda gid=gid: chat.status(gid, limit=0, by=uid), gid)
            for message in chat.history(uid, gid, limit=100).messages:
                for ask in (
                    lambda gid=gid, msgid=message.msgid: chat.message_status(gid, msgid, by=uid),
                    lambda gid=gid, msgid=message.msgid: chat.why(gid, msgid, READER, by=uid),
                ):
                    yield "names", self._asked(ask, gid)
        inbox = chat.inbox(uid)
        yield "inbox", [self.plain(entry) for entry in sorted(inbox.entries, key=lambda entry: entry.gid)]
        yield "totals", (inbox.groups, inbox.unread_groups, inbox.unread)

    def public_answers(self) -> Iterator[Any]:
        """Yield what operators can ask about everybody."""
        for group in self.chat.groups():
            yield "group", self.plain(group)
            yield "members", [self.plain(member) for member in self.chat.members(group.gid)]
            for tally in self.chat.status(group.gid, limit=0):
                yield "tally", self.plain(tally)
                yield "names", self.plain(self.chat.message_status(group.gid, tally.message.msgid))
                for uid in (READER, OTHERS[0]):
                    yield "why", self.plain(self.chat.why(group.gid, tally.message.msgid, uid))
        yield "policy", self.plain(self.chat.user_policy(READER))
        yield "online", self.chat.online([READER, *OTHERS])

    def _asked(self, ask: Callable[[], object], gid: str) -> object:
        """The answer to a question, or the class of the error if it is refused."""
        try:
            return self.plain(ask(), gid)
        except ImError as error:
            return type(error)

    def plain(self, value: Any, gid: str = "") -> Any:
        """A value with each msgid as the seq of its message, and without times."""
        if isinstance(value, str):
            return self._place(gid, value)
        if isinstance(value, datetime):
            return "a time"
        if is_dataclass(value) and not isinstance(value, type):
            gid = getattr(value, "gid", gid)
            return type(value).__name__, [self.plain(getattr(value, field.name), gid) for field in fields(value)]
        if isinstance(value, list | tuple):
            return [self.plain(each, gid) for each in value]
        return value

    def _place(self, gid: str, text: str) -> object:
        try:
            msgids.pack(text)
        except ImError:
            return text
        if (gid, text) not in self._places:
            for tally in self.chat.status(gid, limit=0):
                self._places[gid, tally.message.msgid] = tally.message.seq
        return self._places[gid, text]


class Twins:
    """Both worlds, and one random history of them."""

    def __init__(self, open_chat: Callable[[], Chat], seed: int) -> None:
        self.worlds = World(open_chat()), World(open_chat())
        self.random = random.Random(seed)
        self.is_off = False
        """Whether the reader's receipts are off: then each of their acks is private."""
        self.has_differed = False
        """Whether the worlds were ever different for the reader."""

    def play(self, steps: int) -> None:
        for number in range(steps):
            if self.random.random() < 0.5:
                self.do_the_same(number)
            else:
                self.do_something_in_private()
            if number % 5 == 4:
                self.compare()
        self.compare()

    def do_the_same(self, number: int) -> None:
        gid, uid = self.random.choice(GIDS), self.random.choice([READER, *OTHERS])
        other, back = self.random.choice(OTHERS), self.random.randrange(6)
        acker = self.random.choice([READER, *OTHERS, *OTHERS])
        act = self.random.choice([*_OFTEN, *_SELDOM])
        start, after = self.random.choice(STARTS), self.random.choice([None, None, self.random.randrange(6)])
        most, limit = self.random.choice([None, self.random.randrange(5)]), self.random.randint(1, 5)
        receipts, asked_by = self.random.choice(["names", "names", "counts", "off"]), self.random.choice(ASKERS)
        is_off = self.random.random() < 0.5
        steps: dict[str, Callable[[World], object]] = {
            "send": lambda world: world.chat.send(gid, f"text {number}", sender_uid=uid),
            "direct": lambda world: world.chat.send_direct(READER, f"text {number}", sender_uid=other),
            "ack": lambda world: world.chat.ack(acker, gid, world.msgid(gid, back)),
            "open": lambda world: world.open(start, after, most, by=other),
            "confirm": lambda world: world.confirm(gid, back // 3),
            "fetch": lambda world: world.fetch(gid, back, limit),
            "arrive": lambda world: (msgid := world.msgid(gid, back)) and world.chat.delivered(uid, gid, msgid),
            "leave": lambda world: world.chat.remove_members(gid, [uid]),
            "join": lambda world: world.chat.add_members(gid, [READER, *OTHERS]),
            "policy": lambda world: world.chat.set_group(gid, receipts=receipts, asked_by=asked_by),
            "receipts": lambda world: world.chat.set_user(READER, receipts=not is_off),
            "recall": lambda world: (msgid := world.msgid(gid, back)) and world.chat.recall(gid, msgid, by=uid),
        }
        outcomes = [refusal(steps[act], world) for world in self.worlds]
        assert outcomes[0] == outcomes[1]
        if act == "receipts":
            self.is_off = is_off

    def do_something_in_private(self) -> None:
        """The reader does something in one world, and something else or nothing in the other."""
        for world in self.worlds:
            gid, back = self.random.choice(GIDS), self.random.choice([0, 0, 0, *range(1, 6)])
            msgid = world.msgid(gid, back)
            act = self.random.choice(["nothing", "read", "read", "mark", "unmark"])
            steps: dict[str, Callable[[World], object]] = {
                "nothing": lambda _: None,
                "read": lambda world, gid=gid, msgid=msgid: world.read(gid, msgid, private=not self.is_off),
                "mark": lambda world, gid=gid, msgid=msgid: msgid and world.chat.mark_unread(READER, gid, msgid),
                "unmark": lambda world, gid=gid: world.chat.unmark(READER, gid),
            }
            refusal(steps[act], world)

    def close(self) -> None:
        for world in self.worlds:
            world.gateway.close()
            world.chat.close()

    def compare(self) -> None:
        one, other = self.worlds
        for world in self.worlds:
            run_workers(world.chat)
        self.has_differed |= list(one.answers(READER)) != list(other.answers(READER))
        assert one.frames() == other.frames()
        assert list(one.public_answers()) == list(other.public_answers())
        for uid in OTHERS:
            assert list(one.answers(uid)) == list(other.answers(uid))


def _gid_of(event: Event) -> str:
    """The group of an event; receipts may be of several."""
    return event.message.gid if isinstance(event, NewMessage) else getattr(event, "gid", "")


def _is_there(session: Session, gid: str, last_msgid: str | None) -> bool:
    cursor = session.cursors[gid]
    return not cursor.behind and (cursor.msgid or 0) >= (msgids.pack(last_msgid) if last_msgid else 0)


def refusal(step: Callable[[World], object], world: World) -> type[ImError] | None:
    """The class of the error that a step raises, None if it succeeds."""
    try:
        step(world)
    except ImError as error:
        return type(error)
    return None
