"""A user's client on one device: a live session, a local database and an outbox, kept in step."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Literal, NamedTuple, TypedDict, TypeVar, Unpack

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.device.local_database import PAGE, LocalDatabase, Outgoing
from imcore.device.own_tallies import OwnTallies
from imcore.errors import (
    ConfigurationError,
    ImError,
    InvalidInput,
    NotMember,
    RedisUnavailable,
    RefusedError,
    TryAgain,
    UnknownGroup,
)
from imcore.gateway.listener import Listener
from imcore.model.direct import gid_of, is_direct, peer_of
from imcore.model.limits import check_content, check_name, check_places
from imcore.model.values import LogLine, Message, Receipt
from imcore.operations.effects import raised
from imcore.operations.messages import after
from imcore.streams.calls import group_calls
from imcore.streams.keys import CONFIG
from imcore.util.backoff import Backoff, ThrottledLog

T = TypeVar("T")

log = logging.getLogger(__name__)

_POLL_S = 0.25


class Flushed(NamedTuple):
    """What became of an outbox: what was sent, and what the server will never take, with the reasons."""

    sent: list[Message]
    refused: list[tuple[Outgoing, str]]
    stopped_by: ImError | None = None
    """Why the rest still waits."""


class Device:
    """Joins a Chat and a LocalDatabase. Raises what these raise.

    A local database is for the data of one server: where that has other data, whatever asks it raises
    LocalDatabaseError, and has done nothing.
    """

    def __init__(self, chat: Chat, uid: str, local: LocalDatabase) -> None:
        self._chat = chat
        self._uid = uid
        self._local = local
        self._tallies = OwnTallies(chat, local)
        self._has_met = False
        self._trouble = ThrottledLog(time.monotonic)
        self._outbox_wait, self._tallies_wait = Backoff(), Backoff()

    def meet(self) -> None:
        """Make sure that the server has the data that the local database was made with."""
        if not self._has_met:
            [dataset] = self._chat.system.client.query_unversioned([("HGET", CONFIG, "dataset")])
            self._local.bind(None if dataset is None else dataset.decode(), self._chat.system.client.address)
            self._has_met = dataset is not None

    def queue(self, content: str, *, gid: str | None = None, to_uid: str | None = None) -> Outgoing:
        """Put a message into the outbox: to a group, or one-to-one. It goes out once, after those before it.

        Raise InvalidInput.
        """
        check_content(content, self._chat.system.settings.max_content_bytes)
        if to_uid is not None:
            gid = gid_of(check_name(to_uid, "uid"), self._uid)
        return self._local.queue(check_name(gid or "", "gid"), content, to_uid=to_uid)

    def flush(self) -> Flushed:
        """Send what waits in the outbox, in order. Stop, and leave the rest, when the server cannot take it now.

        What may have gone out before, and was not heard of, is looked for first: it does not go out again.
        """
        try:
            self.meet()
            if self._local.waiting():
                self._chat.system.client.require_functions(
                    writes=True
                )  # as a send does: what comes before it only reads
                self._begin()
                self._find_sent(self._local.attempt())
        except (TryAgain, ConfigurationError) as error:
            return Flushed([], [], error)
        return self._send_waiting()

    def _find_sent(self, gids: Iterable[str]) -> None:
        for page in self._pages(gids):
            self._local.keep(message for message in page if message.sender_uid == self._uid)

    def _send_waiting(self) -> Flushed:
        flushed = Flushed([], [])
        for outgoing in self._local.waiting():
            try:
                message = self._send(outgoing)
            except (TryAgain, ConfigurationError) as error:  # nothing that this message is to blame for
                return flushed._replace(stopped_by=error)
            except ImError as error:
                self._local.refuse(outgoing, str(error))
                flushed.refused.append((outgoing, str(error)))
            else:
                self.keep([message])
                flushed.sent.append(message)
        return flushed

    def _send(self, outgoing: Outgoing) -> Message:
        if outgoing.to_uid is not None:
            return self._chat.send_direct(
                outgoing.to_uid, outgoing.content, sender_uid=self._uid, client_msgid=outgoing.client_msgid
            )
        return self._chat.send(outgoing.gid, outgoing.content, sender_uid=self._uid, client_msgid=outgoing.client_msgid)

    def waits(self, outgoing: Outgoing) -> LogLine:
        """Return how a message of the outbox stands that has not gone out.

        Raise RefusedError if it never will, InvalidInput for a message that is not here.
        """
        lines = (line for line in self._local.unsent(outgoing.gid) if line.client_msgid == outgoing.client_msgid)
        line = next(lines, None)
        if line is None:
            raise InvalidInput("the message is not in this local database")
        if line.state != "waiting":
            raise RefusedError(f"the message was not sent and is {line.state}")
        return line

    def keep(self, items: Iterable[Message | Receipt]) -> None:
        """Keep what the server has answered to calls of the Chat itself: own messages, what was pulled, receipts."""
        with suppress(TryAgain):  # as it has answered just now, it is the one that was met
            self.meet()
        kept = list(items)
        self._local.keep(kept)
        self._learn_peers({item.gid for item in kept})

    def sync(self) -> Flushed:
        """Bring the local database up to date, as at a login: messages after what is here, the outbox, tallies.

        On a database that has never been used so, a group begins after the user's offset, otherwise where they joined.
        """
        self.meet()
        self._begin()
        gids = self._chat.groups_of(self._uid)
        for page in self._pages(gids):
            self._local.keep(page, {page[-1].gid: page[-1].msgid})
        self._learn_peers(gids)
        self._local.attempt()
        flushed = self._send_waiting()
        self._tallies.begin()
        while not self._tallies.done:
            self._tallies.step()
        return flushed

    def _begin(self) -> None:
        """Note where each group begins here, before anything that is done here can move an offset."""
        if self._local.begun:
            return
        space, gids = self._chat.system.client.space, self._chat.groups_of(self._uid)
        found = self._chat.system.client.call_each([group_calls.position(space, gid, self._uid) for gid in gids])
        offsets = {
            gid: raised(position).acked
            for gid, position in zip(gids, found, strict=True)
            if not isinstance(position, (NotMember, UnknownGroup))  # who has left meanwhile
        }
        self._local.begin({gid: msgids.unpack(offset) for gid, offset in offsets.items() if offset})

    def _pages(self, gids: Iterable[str]) -> Iterator[list[Message]]:
        """Pull what these groups have after what is here, a page at a time."""
        places = check_places(self._local.places())
        for gid in gids:
            messages = self._chat.performer.stream(after(gid, self._uid, places.get(gid, msgids.NONE)))
            with suppress(NotMember, UnknownGroup):  # who has left meanwhile, or has never been there
                while page := list(islice(messages, PAGE)):
                    yield page

    def _learn_peers(self, gids: Iterable[str]) -> None:
        """Ask with whom the one-to-one chats are whose gid does not say it."""
        hidden = {gid for gid in gids if is_direct(gid) and peer_of(gid, self._uid) is None}
        for gid in hidden.difference(self._local.peers() if hidden else ()):
            with suppress(TryAgain, UnknownGroup, InvalidInput):  # a name is not worth it: it is asked for again
                for member in self._chat.members(gid):
                    self._local.note_peer(gid, member.uid)

    def live(
        self,
        stopping: Callable[[], bool],
        *,
        ack_every: int = 10,
        ack_interval_s: float = 1.0,
        acks: Literal["auto", "off"] = "auto",
        receipts: Literal["push", "poll"] = "push",
    ) -> Iterator[Message | Receipt]:
        """Yield all that a session hands over, as it comes, until `stopping()`; wait for the server where it is away.

        It is in the local database before it is yielded, and is acked only afterwards: what was yielded and not acked,
        because this was killed or left by an error, comes again in the next session. The outbox is sent as soon as the
        server is there. Raise UnknownUser for one who is in no group.
        """

        def begin() -> Listener:
            self.meet()
            self._begin()
            return self._chat.listen(
                self._uid,
                places=self._local.places(),
                since_join=True,
                ack_every=ack_every,
                ack_interval_s=ack_interval_s,
                acks=acks,
                receipts=receipts,
            )

        with suppress(_Stopped), when_there(begin, stopping, self._trouble) as listener:
            yield from self._events(listener, stopping)

    def _events(self, listener: Listener, stopping: Callable[[], bool]) -> Iterator[Message | Receipt]:
        shown: dict[str, str] = {}
        connection, is_idle = None, True
        while not stopping():
            self._flush_on_the_way()
            items = listener.poll(_POLL_S if is_idle else 0.0)
            if listener.session.entered and listener.reconnects != connection:
                # Nobody knows to what, and what was told before it was heard.
                connection, self._has_met = listener.reconnects, False
                try:
                    when_there(self.meet, stopping, self._trouble)
                except _Stopped:
                    listener.take_back()
                    break
                self._outbox_wait.succeeded()
                self._tallies_wait.succeeded()
                self._tallies.begin()
            # A place moves once all before it was shown: who was killed first shows it when they come back.
            self._local.keep(items, shown)
            shown = {item.gid: item.msgid for item in items if isinstance(item, Message)}
            self._learn_peers(shown)
            yield from items
            is_idle = self._have_asked(items)
        self._local.keep((), shown)

    def _flush_on_the_way(self) -> None:
        """Send what waits in the outbox, unless the server could not take it a moment ago."""
        if time.monotonic() < self._outbox_wait.until:
            return
        flushed = self.flush()
        for _, reason in flushed.refused:
            log.warning("a message that waited in the outbox was refused: %s", reason)
        if flushed.stopped_by is None:
            self._outbox_wait.succeeded()
            return
        self._outbox_wait.failed(time.monotonic())
        if not isinstance(flushed.stopped_by, RedisUnavailable):  # the gateway says so
            self._trouble.note(flushed.stopped_by, "the outbox waits: %s")

    def _have_asked(self, items: Iterable[Message | Receipt]) -> bool:
        """Ask for the tallies of own messages that have come, and for a page of others; return whether that was all.

        Where they cannot be had now they are all asked for later, beginning with the newest.
        """
        own = [item for item in items if isinstance(item, Message) and item.sender_uid == self._uid]
        if time.monotonic() < self._tallies_wait.until:
            if own:
                self._tallies.begin()
            return True
        try:
            self._tallies.ask([message for message in own if message.recalls is None])
            if not self._tallies.done:
                self._tallies.step()
        except TryAgain as error:
            self._tallies.begin()
            self._tallies_wait.failed(time.monotonic())
            if not isinstance(error, RedisUnavailable):
                self._trouble.note(error, "tallies wait: %s")
            return True
        self._tallies_wait.succeeded()
        return self._tallies.done


class SessionOptions(TypedDict, total=False):
    """How a live session acks and is told: see `Client.live`."""

    ack_every: int
    ack_interval_s: float
    acks: Literal["auto", "off"]
    receipts: Literal["push", "poll"]


def watch(
    chat: Chat, uid: str, stopping: Callable[[], bool], **options: Unpack[SessionOptions]
) -> Iterator[Message | Receipt]:
    """Yield what a session without a local database hands over, from the user's offset on, until `stopping()`.

    What was yielded is acked only afterwards. Raise UnknownUser for one who is in no group.
    """
    with suppress(_Stopped), when_there(lambda: chat.listen(uid, **options), stopping) as listener:
        while not stopping():
            yield from listener.poll(_POLL_S)


def when_there(attempt: Callable[[], T], stopping: Callable[[], bool], trouble: ThrottledLog | None = None) -> T:
    """Return what the attempt returns, once the server is there; say once a minute that it is not."""
    trouble = trouble or ThrottledLog(time.monotonic)
    wait = Backoff()
    while not stopping():
        try:
            return attempt()
        except TryAgain as error:
            trouble.note(error, "%s; waiting for it")
            wait.failed(time.monotonic())
        while not stopping() and (left_s := wait.until - time.monotonic()) > 0:
            time.sleep(min(left_s, _POLL_S))
    raise _Stopped


class _Stopped(Exception):
    """It was to stop before the server was there."""
