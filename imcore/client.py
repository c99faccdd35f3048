"""A user's client on one device: a live session, a local database and an outbox, kept in step."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Literal

from imcore import msgid as msgids
from imcore.chat import Chat
from imcore.direct import gid_of
from imcore.errors import ImError, InvalidInput, NotMember, RefusedError, UnknownGroup
from imcore.history import PAGE
from imcore.limits import check_content, check_name, check_places
from imcore.live.feed import Place
from imcore.live.localdb import LocalDatabase, Outgoing
from imcore.values import LogLine, Message, Receipt

log = logging.getLogger(__name__)

_POLL_S = 0.25


class Client:
    """Joins a Chat and a LocalDatabase. Raises what these raise."""

    def __init__(self, chat: Chat, uid: str, local: LocalDatabase) -> None:
        self._chat = chat
        self._uid = uid
        self._local = local
        self._begun: set[str] = set()

    def queue(self, content: str, *, gid: str | None = None, to_uid: str | None = None) -> Outgoing:
        """Put a message into the outbox: to a group, or one-to-one. It goes out once, after those before it.

        Raise InvalidInput.
        """
        check_content(content, self._chat.settings.max_content_bytes)
        if to_uid is not None:
            gid = gid_of(check_name(to_uid, "uid"), self._uid)
        return self._local.queue(check_name(gid or "", "gid"), content, to_uid=to_uid)

    def flush(self) -> list[Message]:
        """Send what waits in the outbox, in order. Stop, and leave the rest, when the server cannot take it now."""
        sent = []
        for outgoing in self._local.waiting():
            try:
                message = self._send(outgoing)
            except (InvalidInput, NotMember, UnknownGroup) as error:
                log.warning("the server will not take a message of the outbox: %s", error)
                self._local.refuse(outgoing, str(error))
                continue
            except ImError as error:  # away, full, its password changed: nothing that this message is to blame for
                log.info("the outbox waits: %s", error)
                break
            self._local.keep_sent(message, outgoing)
            sent.append(message)
        return sent

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
        lines = (line for line in self._local.log() if line.client_msgid == outgoing.client_msgid)
        line = next(lines, None)
        if line is None:
            raise InvalidInput("the message is not in this local database")
        if line.state != "waiting":
            raise RefusedError(f"the message was not sent and is {line.state}")
        return line

    def keep_sent(self, message: Message) -> None:
        """Keep an own message that was sent past the outbox."""
        self._local.keep_sent(message)

    def sync(self) -> None:
        """Bring the local database up to date, as at a login: messages after what is here, receipts, the outbox."""
        self.flush()
        places = self._local.places()
        for gid in self._chat.groups_of(self._uid):
            with suppress(NotMember):  # who has left meanwhile
                self._receive_after(gid, places.get(gid))
        self._local.take_receipts(self._chat.receipts(self._uid))

    def _receive_after(self, gid: str, place: Place | None) -> None:
        messages = self._chat.history.after(gid, self._uid, place.msgid if place else None)
        while page := list(islice(messages, PAGE)):
            self._local.receive(page)

    def live(
        self,
        stopping: Callable[[], bool],
        *,
        ack_every: int = 10,
        ack_interval_s: float = 1.0,
        acks: bool = True,
        receipts: Literal["push", "poll"] = "push",
    ) -> Iterator[Message | Receipt]:
        """Yield what is new here, as it comes, until `stopping()`. It is in the local database before it is yielded.

        The outbox is sent as soon as the server is there. Raise UnknownUser for one who is in no group.
        """
        listener = self._chat.listen(
            self._uid,
            places={gid: msgids.unpack(place.msgid) for gid, place in self._local.places().items()},
            ack_every=ack_every,
            ack_interval_s=ack_interval_s,
            acks="auto" if acks else "off",
            receipts=receipts,
        )
        with listener:
            while not stopping():
                self.flush()
                new = self._keep(listener.poll(_POLL_S))
                self._note_beginnings(listener.places())
                yield from new

    def _keep(self, items: list[Message | Receipt]) -> list[Message | Receipt]:
        messages = [item for item in items if isinstance(item, Message)]
        told = [item for item in items if isinstance(item, Receipt)]
        new = self._local.receive(messages) if messages else []
        if told:
            self._local.take_receipts(told)
        return [*new, *told]

    def _note_beginnings(self, places: Mapping[str, str]) -> None:
        """Note where a group begins here, while nothing has come in it: another device may ack what comes next."""
        for gid in places.keys() - self._begun:
            self._local.note_place(gid, Place(check_places({gid: places[gid]})[gid], 0))
            self._begun.add(gid)
