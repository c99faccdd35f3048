"""Chat: groups, messages, acks, and who has read what. The public API."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from imcore.errors import ImError, NotMember, RedisFull, UnknownGroup, UnknownMessage, UnknownUser
from imcore.gateway.core import AckMode, ReceiptMode
from imcore.gateway.gateway import Gateway, Listener
from imcore.model.direct import gid_of, members_of, refuse_direct
from imcore.model.limits import (
    check_content,
    check_handed_over,
    check_limit,
    check_list,
    check_msgid,
    check_name,
    check_time,
    check_uids,
)
from imcore.model.values import Ack, Draft, Group, Member, Message, MessageStatus, MessageTally, Receipt, Tally, Unread
from imcore.operations import creation
from imcore.operations.batch import Batch
from imcore.operations.effects import raised
from imcore.operations.groups import groups as groups_now
from imcore.operations.groups import scan
from imcore.operations.performer import Performer
from imcore.operations.reader import History
from imcore.operations.receipts import Receipts
from imcore.settings import Settings
from imcore.streams import wire
from imcore.streams.calls import group_calls, message_calls, session_calls
from imcore.streams.calls.call import error_of
from imcore.streams.calls.message_calls import AckTarget
from imcore.streams.client import CHUNK
from imcore.streams.keys import SEPARATOR
from imcore.system import System

if TYPE_CHECKING:
    pass


class Chat:
    """One connection to the system.

    Every method raises InvalidInput for a name, content or msgid that cannot be one, UnknownGroup for a gid that is
    none, RedisUnavailable when no answer comes. A call that raised has changed nothing; only after RedisUnavailable
    that is unknown, and all but a send without client_msgid may simply be repeated.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.performer = Performer(system)
        self.history = History(self.performer)
        self._receipts = Receipts(system.client, self.history)
        self._many = Batch(system.client, self.history, system.settings)

    @classmethod
    def connect(
        cls, redis_url: str | None = None, database_url: str | None = None, *, settings: Settings | None = None
    ) -> Self:
        """Return a Chat for these URLs; what is not given comes from the settings, which come from the environment.

        Nothing is sent before the first call. Raise ConfigurationError for a URL that is none.
        """
        return cls(System.connect(redis_url, database_url, settings=settings))

    def close(self) -> None:
        """Give all connections back."""
        self.system.client.close()
        self.performer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_group(self, gid: str, uids: Iterable[str] = ()) -> Group:
        """Make a group. The same group with the same members again changes nothing.

        More than 100 come in steps of so many; nobody sees the group before the last of them, and the same call again
        goes on where a process has died. Raise GroupExists if there is one of that gid with other members,
        GroupUnderWay if another process is creating one.
        """
        refuse_direct(check_name(gid, "gid"))
        return creation.create(self.system.client, gid, check_uids(uids))

    def add_members(self, gid: str, uids: Iterable[str]) -> Group:
        """Add members, who begin after the newest message. Who is a member already stays as they are.

        More than 100 are added in steps of so many. Raise RedisFull, which says how many are in.
        """
        return self._in_chunks(group_calls.add_members, gid, uids)

    def remove_members(self, gid: str, uids: Iterable[str]) -> Group:
        """End memberships. What a leaver had read stays read; who is no member is passed over."""
        return self._in_chunks(group_calls.remove_members, gid, uids)

    def _in_chunks(self, build: group_calls.MembersCall, gid: str, uids: Iterable[str]) -> Group:
        refuse_direct(check_name(gid, "gid"))
        members = check_uids(uids)
        if not members:
            return self.group(gid)
        for done in range(0, len(members), creation.STEP):
            try:
                group = self.system.client.call(
                    build(self.system.client.space, gid, members[done : done + creation.STEP])
                )
            except RedisFull as error:
                if not done:
                    raise
                raise RedisFull(
                    f"{error} of {len(members) - done} members; {done} are in: repeat it for all"
                ) from error
        return group

    def group(self, gid: str) -> Group:
        """Return what a group is now."""
        return self.system.client.call(group_calls.group(self.system.client.space, check_name(gid, "gid")))

    def groups(self) -> Iterator[Group]:
        """Yield all groups, by gid."""
        return groups_now(self.system.client)

    def members(self, gid: str) -> Iterator[Member]:
        """Yield the current members of a group, by uid."""
        self.group(gid)
        space = self.system.client.space
        spans = {wire.text(name) for name in scan(self.system.client, "ZSCAN", space.group(gid).acked)}
        uids = sorted(span for span in spans if SEPARATOR not in span)
        for i in range(0, len(uids), CHUNK):
            yield from self._members(gid, uids[i : i + CHUNK])

    def _members(self, gid: str, uids: Sequence[str]) -> Iterator[Member]:
        online = self._online(uids)
        for uid, position in zip(uids, self.history.positions(gid, uids), strict=True):
            if position:
                yield Member(gid, uid, position.last_ack_msgid, position.unread, online=uid in online)

    def online(self, uids: Iterable[str]) -> set[str]:
        """Return those of the users who have a live session."""
        return self._online(check_uids(uids))

    def _online(self, uids: Iterable[str]) -> set[str]:
        space = self.system.client.space
        by_partition: dict[int, list[str]] = {}
        for uid in uids:
            by_partition.setdefault(space.partition_of(uid), []).append(uid)
        asked = [
            (partition, some[i : i + CHUNK])
            for partition, some in by_partition.items()
            for i in range(0, len(some), CHUNK)
        ]
        answers = self.system.client.call_many(
            [session_calls.online(space, partition, some) for partition, some in asked]
        )
        return {
            uid
            for (_, some), flags in zip(asked, answers, strict=True)
            for uid, online in zip(some, flags, strict=True)
            if online
        }

    def send(
        self,
        gid: str,
        content: str,
        *,
        sender_uid: str,
        client_msgid: str | None = None,
        sent_at: datetime | None = None,
    ) -> Message:
        """Store a message, and tell every member who is online.

        A client_msgid makes it safe to repeat: for 24 hours (IM_IDEMPOTENCY_MS) the same sender's same client_msgid in
        that group is answered with the message it made the first time. Raise NotMember, RedisFull.
        """
        check_name(gid, "gid")
        check_name(sender_uid, "uid")
        check_content(content, self.system.settings.max_content_bytes)
        if client_msgid is not None:
            check_name(client_msgid, "client_msgid")
        sent_at_ms = None if sent_at is None else check_time(sent_at)
        draft = Draft(sender_uid, content, client_msgid or "", sent_at_ms)
        call = message_calls.send(self.system.client.space, gid, [draft], self.system.settings.idempotency_ms)
        sent = raised(self.system.client.call(call, repeatable=client_msgid is not None)[0])
        return self._many.message(gid, draft, sent)

    def send_many(self, gid: str, drafts: Iterable[Draft]) -> list[Message | ImError]:
        """Store messages of one group in their order, in few calls: each costs the server half of what `send` does.

        Return for each the message, or why it was not stored: NotMember, RedisFull, or RedisUnavailable, after which
        that is unknown. Raise InvalidInput before any is stored if one cannot be.
        """
        return self._many.send(check_name(gid, "gid"), check_list(drafts, "drafts"))

    def ack_many(self, gid: str, acks: Iterable[tuple[str, str | None]]) -> list[Ack | ImError]:
        """Do many acks, each a uid and the msgid they confirm (None: the newest), in a call for each msgid.

        Return for each what `ack` returns, or the error that it would raise. Raise InvalidInput before any is done.
        """
        return self._many.ack(check_handed_over(gid, "gid"), check_list(acks, "acks"))

    def recall(self, gid: str, msgid: str, *, by: str, admin: bool = False) -> Message:
        """Withdraw a message: its content is gone, and it is unread for nobody. Return the tombstone that members get.

        Only its sender may, or an `admin`. A message that is recalled already is answered as it is now, without a
        second tombstone. Raise UnknownMessage, NotSender, and InvalidInput for a tombstone.
        """
        check_name(by, "uid")
        packed = check_msgid(msgid)
        message = self.history.message(check_name(gid, "gid"), packed)
        if message is None:
            self.group(gid)
            raise UnknownMessage(f"{msgid} is not a message of {gid!r}")
        if message.recalls is not None:
            raise error_of(b"TOMBSTONE", gid, msgid=packed)
        call = message_calls.recall(
            self.system.client.space, gid, packed, by=by, sender_uid=message.sender_uid, admin=admin
        )
        tombstone = self.system.client.call(call)
        if tombstone is None:
            return replace(message, content="", recalled=True)
        return Message(gid, tombstone.msgid, tombstone.seq, by, "", recalls=msgid)

    def send_direct(self, uid: str, content: str, *, sender_uid: str, client_msgid: str | None = None) -> Message:
        """Send one-to-one. The chat of the two (or with oneself) is made on first use, with the gid `direct.gid_of`."""
        gid = gid_of(uid, sender_uid)
        # All that the send below refuses is refused here already, or the chat would be made and nothing said in it.
        check_content(content, self.system.settings.max_content_bytes)
        if client_msgid is not None:
            check_name(client_msgid, "client_msgid")
        creation.create(self.system.client, gid, members_of(uid, sender_uid))
        return self.send(gid, content, sender_uid=sender_uid, client_msgid=client_msgid)

    def pull(self, uid: str, gid: str | None = None, *, limit: int | None = None) -> list[Message]:
        """Return what a user has not acked, oldest first, own messages included: there are no holes.

        Without a gid: of all their groups, by gid; then `limit` is per group. Raise NotMember if a gid is given.
        """
        check_name(uid, "uid")
        check_limit(limit)
        if gid is not None:
            return list(self.history.after_offset(check_name(gid, "gid"), uid, limit=limit))
        return [message for each in self.groups_of(uid) for message in self._pull_if_member(each, uid, limit)]

    def _pull_if_member(self, gid: str, uid: str, limit: int | None) -> list[Message]:
        try:
            return list(self.history.after_offset(gid, uid, limit=limit))
        except (NotMember, UnknownGroup):
            return []

    def groups_of(self, uid: str) -> list[str]:
        """Return the gids of a user's groups, in order."""
        return self.history.groups_of(check_name(uid, "uid"))

    def known_user(self, uid: str) -> str:
        """Return a uid unchanged. Raise UnknownUser for one who is in no group."""
        if not self.groups_of(uid):
            raise UnknownUser(f"{uid!r} is in no group: add them to one first")
        return uid

    def ack(self, uid: str, gid: str, msgid: str | None = None) -> Ack:
        """Confirm everything up to a message, the newest if none is given. An older ack than before changes nothing.

        Raise NotMember, and UnknownMessage for a msgid that is not of this group or not issued yet.
        """
        check_name(uid, "uid")
        check_handed_over(gid, "gid")
        packed = None if msgid is None else check_msgid(msgid)

        def attempt(seq: int | None) -> Ack:
            [acked] = self.system.client.call(
                message_calls.ack(self.system.client.space, gid, [AckTarget(packed, [uid], seq)])
            )
            return raised(acked.of(uid))

        return self.history.if_trimmed(gid, packed or 0, attempt)

    def unread(self, uid: str) -> list[Unread]:
        """Return what a user has not read in each of their groups, by gid; own messages do not count."""
        return self.history.unread(uid, self.groups_of(uid))

    def status(self, gid: str, *, limit: int = 20) -> list[MessageTally]:
        """Return the tallies of the newest messages (0: of all), oldest first."""
        check_limit(limit, lowest=0)
        return self.history.newest(check_name(gid, "gid"), limit=limit)

    def tally(self, gid: str, msgid: str) -> Tally:
        """Return how many have read a message and how many have not. Raise UnknownMessage."""
        return Tally(gid, msgid, *self.history.tallies(check_name(gid, "gid"), [check_msgid(msgid)])[0])

    def tallies(self, gid: str, msgids: Iterable[str]) -> list[Tally]:
        """Return how many have read each of a group's messages, and how many have not; what is none is left out.

        However many they are, and also where Redis has trimmed them.
        """
        check_handed_over(gid, "gid")
        wanted = {check_msgid(msgid): msgid for msgid in check_list(msgids, "msgids")}
        found = zip(wanted.values(), self.history.tallies_or_why(gid, list(wanted)), strict=True)
        return [Tally(gid, msgid, *raised(counts)) for msgid, counts in found if not isinstance(counts, UnknownMessage)]

    def message_status(self, gid: str, msgid: str) -> MessageStatus:
        """Return who has read a message, and when, and who has not. Raise UnknownMessage.

        The times are None before a worker has stored any, and while the database is away, which is logged as a warning.
        """
        return self.history.status(check_name(gid, "gid"), check_msgid(msgid))

    def receipts(self, uid: str, *, limit: int | None = None) -> list[Receipt]:
        """Return the tallies of the user's own messages that changed since they were confirmed, by gid and age.

        The worker `receipts` finds them. Confirm them with `confirm_receipts`, or they come again.
        """
        return self._receipts.pending(check_name(uid, "uid"), limit=check_limit(limit))

    def confirm_receipts(self, uid: str, receipts: Sequence[Receipt]) -> int:
        """Confirm receipts; one that changed again meanwhile stays. Return how many are confirmed."""
        return self._receipts.confirm(check_name(uid, "uid"), receipts)

    def gateway(
        self,
        *,
        ack_every: int = 10,
        ack_interval_s: float = 1.0,
        acks: AckMode = "auto",
        receipts: ReceiptMode = "push",
    ) -> Gateway:
        """Return a gateway: the live sessions of many users over one connection."""
        return Gateway(
            self.performer,
            self.system.settings,
            ack_every=ack_every,
            ack_interval_s=ack_interval_s,
            acks=acks,
            receipts=receipts,
        )

    def listen(
        self,
        uid: str,
        *,
        after: Mapping[str, str] | None = None,
        since_join: bool = False,
        ack_every: int = 10,
        ack_interval_s: float = 1.0,
        acks: AckMode = "auto",
        receipts: ReceiptMode = "push",
    ) -> Listener:
        """Begin a live session and return it, to be used in a `with`: an iterator of Message and Receipt.

        It begins with what was not acked, and with what came `after` the client's own messages (see `Gateway.open`);
        then it goes live. Raise UnknownUser for one who is in no group.
        """
        self.known_user(uid)
        gateway = self.gateway(ack_every=ack_every, ack_interval_s=ack_interval_s, acks=acks, receipts=receipts)
        return Listener(gateway, uid, after=after, since_join=since_join)

    def begin_session(self, uid: str) -> str:
        """Begin a session that lives without pushes, by heartbeats; return its id. The user is online from now on."""
        session = uuid.uuid4().hex
        self._beat(check_name(uid, "uid"), session, opens=True)
        return session

    def heartbeat(self, uid: str, session: str) -> list[Receipt]:
        """Keep a session alive (IM_ONLINE_MS from now on); return the receipts that wait. Raise SessionExpired."""
        self._beat(check_name(uid, "uid"), check_name(session, "session"), opens=False)
        return self._receipts.pending(uid)

    def end_session(self, uid: str, session: str) -> None:
        """End a session. The user is offline if it was their last one."""
        check_name(uid, "uid")
        self.system.client.call(session_calls.bye(self.system.client.space, uid, check_name(session, "session")))

    def _beat(self, uid: str, session: str, *, opens: bool) -> None:
        self.system.client.call(
            session_calls.beat(self.system.client.space, uid, session, self.system.settings.online_ms, opens=opens)
        )
