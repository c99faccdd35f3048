"""One device of a user: a live session, a local database and an outbox, kept in step."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar, Unpack

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.device.erasures import follow_erasures
from imcore.device.local_database import PAGE, LocalDatabase, Outgoing
from imcore.device.lost import forget_lost, keep_items
from imcore.errors import (
    ConfigurationError,
    DatabaseNotReady,
    DatabaseUnavailable,
    ImError,
    InvalidInput,
    NotAllowed,
    NotMember,
    RedisUnavailable,
    RefusedError,
    TryAgain,
    UnknownGroup,
)
from imcore.gateway.listener import Item, Listener
from imcore.gateway.options import SessionOptions
from imcore.model.direct import gid_of, is_direct, peer_of
from imcore.model.limits import check_content, check_name, check_resume_points
from imcore.model.meta import Meta, check_meta
from imcore.model.values import LogLine, Message, Receipt, Tally
from imcore.operations.effects import raised
from imcore.operations.messages import after
from imcore.streams import configuration
from imcore.streams.calls import group_calls
from imcore.util.backoff import Backoff, ThrottledLog
from imcore.util.batches import batches, grouped

T = TypeVar("T")

log = logging.getLogger(__name__)

_POLL_S = 0.25


class Flushed(NamedTuple):
    """The outcome for an outbox: messages sent, and messages that the server will never accept, with the reasons."""

    sent: list[Message]
    refused: list[tuple[Outgoing, str]]
    stopped_by: ImError | None = None
    """Why the rest still waits."""


class Device:
    """Joins a Chat and a LocalDatabase. Raises what these raise. For the thread that has opened the database.

    A local database is for the data of one server. If the server has other data, every method that needs the server
    raises LocalDatabaseError, and has done nothing.
    """

    def __init__(self, chat: Chat, uid: str, local: LocalDatabase) -> None:
        self._chat = chat
        self._client = chat.system.client
        self._uid = uid
        self._local = local
        self._tallies_before: tuple[str, str] | None = None
        """Gid and msgid of the own message before which tallies are asked for next; None: the newest."""
        self._has_all_tallies = True
        self._has_checked = False
        self._log = ThrottledLog(time.monotonic)
        self._outbox_backoff, self._tallies_backoff = Backoff(), Backoff()

    def check_dataset(self) -> None:
        """Make sure that the server has the data that the local database was made with."""
        if not self._has_checked:
            dataset = configuration.dataset(self._client)
            self._local.bind(dataset, self._client.address)
            self._has_checked = dataset is not None

    def queue(
        self, content: str, *, gid: str | None = None, to_uid: str | None = None, meta: Meta | None = None
    ) -> Outgoing:
        """Put a message into the outbox, to a group or one-to-one. It is sent once, in order. Raise InvalidInput."""
        settings = self._chat.system.settings
        check_content(content, settings.max_content_bytes)
        checked = check_meta(meta, settings.max_meta_bytes)
        if to_uid is not None:
            gid = gid_of(check_name(to_uid, "uid"), self._uid)
        return self._local.queue(check_name(gid or "", "gid"), content, to_uid=to_uid, meta=checked)

    def flush(self) -> Flushed:
        """Send the outbox in order. Stop, and leave the rest, when the server cannot take it now.

        A message that may have been sent before, without an answer, is not sent again if the server has it.
        """
        try:
            self.check_dataset()
            if self._local.waiting():
                # As a send does it: the reads before it would work without the right to write.
                self._client.require_functions(writes=True)
                self._begin()
                for page in self._pages(self._local.mark_tried()):
                    self._local.keep(message for message in page if message.sender_uid == self._uid)
        except (TryAgain, ConfigurationError) as error:
            return Flushed([], [], error)
        return self._send_waiting()

    def _send_waiting(self) -> Flushed:
        flushed = Flushed([], [])
        for outgoing in self._local.waiting():
            try:
                message = self._send(outgoing)
            except (TryAgain, ConfigurationError) as error:  # this message is not to blame
                return flushed._replace(stopped_by=error)
            except ImError as error:
                self._local.refuse(outgoing, str(error))
                flushed.refused.append((outgoing, str(error)))
            else:
                self.keep([message])
                flushed.sent.append(message)
        return flushed

    def _send(self, outgoing: Outgoing) -> Message:
        _, gid, to_uid, content, client_msgid, meta = outgoing
        if to_uid is not None:
            return self._chat.send_direct(to_uid, content, sender_uid=self._uid, client_msgid=client_msgid, meta=meta)
        return self._chat.send(gid, content, sender_uid=self._uid, client_msgid=client_msgid, meta=meta)

    def unsent_line(self, outgoing: Outgoing) -> LogLine:
        """Return the log line of a message that waits in the outbox. Raise RefusedError, InvalidInput."""
        lines = (line for line in self._local.unsent(outgoing.gid) if line.client_msgid == outgoing.client_msgid)
        line = next(lines, None)
        if line is None:
            raise InvalidInput("the message is not in this local database")
        if line.state != "waiting":
            raise RefusedError(f"the message was not sent and is {line.state}")
        return line

    def keep(self, items: Iterable[Message | Receipt]) -> None:
        """Keep the server's answers to calls of the Chat itself: own messages, pulled messages, receipts."""
        with suppress(TryAgain):  # the server that has just answered is the one that was checked
            self.check_dataset()
        self._learn_peers(self._local.keep(items))

    def sync(self) -> Flushed:
        """Bring the local database up to date, as at a login: messages after those here, the outbox, tallies.

        On a database that was never synced, a group begins after the user's offset, otherwise where they joined it.
        """
        self._catch_up()
        gids = self._chat.groups_of(self._uid)
        for page in self._pages(gids):
            self._local.keep(page, {page[-1].gid: page[-1].msgid})
        self._learn_peers(gids)
        self._local.mark_tried()
        flushed = self._send_waiting()
        self._begin_tallies()
        while not self._has_all_tallies:
            self._fetch_older_tallies()
        return flushed

    def _catch_up(self) -> None:
        """Remove what the server has no more, before anything else."""
        self.check_dataset()
        follow_erasures(self._chat, self._local)
        forget_lost(self._chat, self._local)
        self._begin()

    def _begin(self) -> None:
        """Note where each group begins here, before this device can move an offset."""
        if self._local.begun:
            return
        gids = self._chat.groups_of(self._uid)
        positions = self._client.call_each([group_calls.position(self._client.space, gid, self._uid) for gid in gids])
        offsets = {
            gid: raised(position).acked
            for gid, position in zip(gids, positions, strict=True)
            if not isinstance(position, (NotMember, UnknownGroup))  # the user has left meanwhile
        }
        self._local.begin({gid: msgids.unpack(offset) for gid, offset in offsets.items() if offset})

    def _pages(self, gids: Iterable[str]) -> Iterator[list[Message]]:
        """Pull the messages of these groups after those here, a page at a time."""
        resume_points = check_resume_points(self._local.resume_points())
        for gid in gids:
            messages = self._chat.performer.stream(after(gid, self._uid, resume_points.get(gid, msgids.NONE)))
            with suppress(NotMember, UnknownGroup):  # the user has left, or was never in
                yield from batches(messages, PAGE)

    def _learn_peers(self, gids: Iterable[str]) -> None:
        """Ask for the other users of one-to-one chats whose gids do not say them."""
        hidden = {gid for gid in gids if is_direct(gid) and peer_of(gid, self._uid) is None}
        for gid in hidden.difference(self._local.peers() if hidden else ()):
            with suppress(TryAgain, UnknownGroup, InvalidInput):  # no name is worth an error: ask again later
                for member in self._chat.members(gid):
                    self._local.note_peer(gid, member.uid)

    def live(self, stopping: Callable[[], bool], **options: Unpack[SessionOptions]) -> Iterator[Item]:
        """Yield what a live session brings, until `stopping()`; wait for the server while it is away.

        Each item is in the local database before it is yielded, and is acked afterwards: items that were yielded and
        not acked, because the process was killed or left by an error, come again in the next session. The outbox is
        sent as soon as the server is there. Raise UnknownUser for a user who is in no group.
        """

        def begin() -> Listener:
            self._catch_up()
            return self._chat.listen(self._uid, start="join", after=self._unacked_from(), **options)

        with suppress(_Stopped), when_there(begin, stopping, self._log) as listener:
            yield from self._items(listener, stopping)

    def _unacked_from(self) -> dict[str, str]:
        """Return after which message each group goes on: what is here and was never acked comes once more.

        It may never have been shown; and a message that Redis had lost may be back before those that are here.
        """
        known = self._local.resume_points()
        offsets = self._client.call_each([group_calls.offset(self._client.space, gid, self._uid) for gid in known])
        for gid, offset in zip(list(known), offsets, strict=True):
            if isinstance(offset, TryAgain | ConfigurationError):
                raise offset
            if isinstance(offset, int):  # else the user has left meanwhile, or something is wrong in that group alone
                known[gid] = min(known[gid], msgids.unpack(offset), key=msgids.position_of)
        return known

    def _items(self, listener: Listener, stopping: Callable[[], bool]) -> Iterator[Item]:
        yielded: dict[str, str] = {}
        connection, is_idle = None, True
        while not stopping():
            self._try_outbox()
            items = listener.poll(_POLL_S if is_idle else 0.0)
            if listener.session.is_synced and listener.reconnects != connection:
                # The server may be another one now, and receipts may have been missed.
                connection, self._has_checked = listener.reconnects, False
                try:
                    when_there(self.check_dataset, stopping, self._log)
                except _Stopped:
                    listener.requeue()
                    break
                self._outbox_backoff.succeeded()
                self._tallies_backoff.succeeded()
                self._begin_tallies()
            # Resume after yielded messages only: if this process is killed before, the next one yields the others.
            yielded = keep_items(self._local, items, yielded)
            self._learn_peers(yielded)
            yield from items
            is_idle = self._try_tallies(items)
        self._local.keep((), yielded)

    def _try_outbox(self) -> None:
        if time.monotonic() < self._outbox_backoff.until:
            return
        flushed = self.flush()
        for _, reason in flushed.refused:
            log.warning("a message that waited in the outbox was refused: %s", reason)
        if flushed.stopped_by is None:
            self._outbox_backoff.succeeded()
        else:
            self._wait(self._outbox_backoff, flushed.stopped_by, "the outbox waits: %s")

    def _try_tallies(self, items: Iterable[Item]) -> bool:
        """Ask for the tallies of new own messages, and for a page of older ones; return whether that was the last page.

        If that fails, all are asked for later, beginning with the newest.
        """
        own = [item for item in items if isinstance(item, Message) and item.sender_uid == self._uid]
        if time.monotonic() < self._tallies_backoff.until:
            if own:
                self._begin_tallies()
            return True
        try:
            self._fetch_new_tallies(own)
            if not self._has_all_tallies:
                self._fetch_older_tallies()
        except TryAgain as error:
            self._begin_tallies()
            self._wait(self._tallies_backoff, error, "tallies wait: %s")
            return True
        self._tallies_backoff.succeeded()
        return self._has_all_tallies

    # Digests are not enough for the tallies of own messages: the first device that confirms them ends them.

    def _begin_tallies(self) -> None:
        self._tallies_before, self._has_all_tallies = None, False

    def _fetch_new_tallies(self, own: Iterable[Message]) -> None:
        """Ask for own messages that have just come: their earlier receipts went to other devices."""
        for page in batches((message for message in own if message.recalls is None), PAGE):
            self._fetch_tallies({(message.gid, message.msgid): (0, None) for message in page})

    def _fetch_older_tallies(self) -> None:
        """Ask for a page of own messages that may be unread. If RedisUnavailable is raised, no tally is kept."""
        known = self._local.unread_own_messages(self._tallies_before)
        self._fetch_tallies(known)
        self._tallies_before = next(reversed(known), None)
        self._has_all_tallies = len(known) < PAGE

    def _fetch_tallies(self, known: Mapping[tuple[str, str], tuple[int, int | None]]) -> None:
        """Ask for the tallies of own messages; keep those that differ from the known ones."""
        tallies = [tally for gid, own in grouped(known).items() for tally in self._tallies_of(gid, own)]
        # A message that nobody has read yet is no news.
        news = (tally for tally in tallies if tally.read or not tally.unread)
        self._local.keep(tally for tally in news if known[tally.gid, tally.msgid] != (tally.read, tally.unread))

    def _tallies_of(self, gid: str, wanted: list[str]) -> list[Tally]:
        try:
            return self._chat.tallies(gid, wanted, by=self._uid)
        except (UnknownGroup, NotMember, NotAllowed, DatabaseNotReady, DatabaseUnavailable):  # other groups may answer
            return []

    def _wait(self, backoff: Backoff, error: ImError, text: str) -> None:
        backoff.failed(time.monotonic())
        if not isinstance(error, RedisUnavailable):  # the gateway logs that
            self._log.note(error, text)


def watch(chat: Chat, uid: str, stopping: Callable[[], bool], **options: Unpack[SessionOptions]) -> Iterator[Item]:
    """Yield what a live session without a local database brings, acked once it was yielded. Raise UnknownUser."""
    with suppress(_Stopped), when_there(lambda: chat.listen(uid, **options), stopping) as listener:
        while not stopping():
            yield from listener.poll(_POLL_S)


def when_there(attempt: Callable[[], T], stopping: Callable[[], bool], throttled_log: ThrottledLog | None = None) -> T:
    """Return what the attempt returns, once the server is there. Warn once a minute while it is not."""
    throttled_log = throttled_log or ThrottledLog(time.monotonic)
    backoff = Backoff()
    while not stopping():
        try:
            return attempt()
        except TryAgain as error:
            throttled_log.note(error, "%s; waiting for it")
            backoff.failed(time.monotonic())
        while not stopping() and (left_s := backoff.until - time.monotonic()) > 0:
            time.sleep(min(left_s, _POLL_S))
    raise _Stopped


class _Stopped(Exception):
    """Told to stop before the server was there."""
