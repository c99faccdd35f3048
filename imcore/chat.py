"""Chat: groups, messages, acks, and who has read what. The public API."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Self, Unpack

from imcore.errors import ImError
from imcore.gateway.gateway import Gateway
from imcore.gateway.listener import Listener
from imcore.gateway.options import SessionOptions
from imcore.gateway.request import StartMode
from imcore.model.durable import Durable
from imcore.model.values import (
    Ack,
    DeletedGroup,
    Delivery,
    Draft,
    ErasedUser,
    Group,
    HistoryPage,
    InboxPage,
    Member,
    Message,
    Receipt,
    Unread,
    UnreadCounts,
)
from imcore.operations import deletion, groups, history, inbox, messages, positions, queries, sessions
from imcore.operations.performer import Performer
from imcore.operations.read_status import ReadStatus
from imcore.settings import Settings
from imcore.system import System


class Chat(ReadStatus):
    """One connection to the system.

    Every method raises InvalidInput for a name, content or msgid that cannot exist, UnknownGroup for an unknown gid,
    RedisUnavailable when no answer comes. A call that raised has changed nothing. Only after RedisUnavailable that is
    unknown; then all calls but a send without client_msgid may be repeated.

    Threads may share a Chat once its first call has returned. What `groups` and `members` return is for one thread,
    like each gateway and listener. A forked process makes its own Chat. Values, such as Message, are for any thread.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.performer = Performer(system)

    @classmethod
    def connect(
        cls, redis_url: str | None = None, database_url: str | None = None, *, settings: Settings | None = None
    ) -> Self:
        """Return a Chat for these URLs, or those of the settings, without any I/O. Raise ConfigurationError."""
        return cls(System.connect(redis_url, database_url, settings=settings))

    def open_database(self) -> None:
        """Open the database now: its first use loads SQL's libraries and connects, which takes half a second.

        Raise DatabaseUnavailable, ConfigurationError; DatabaseNotReady while no worker has stored anything.
        """
        return self.performer.perform(queries.open_database())

    def close(self) -> None:
        self.system.client.close()
        self.performer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_group(self, gid: str, uids: Iterable[str] = ()) -> Group:
        """Create a group. The same group with the same members again changes nothing.

        More than 100 members are added in steps. Nobody sees the group before the last step, and the same call again
        continues where a process died. Raise GroupExists if the group exists with other members, GroupUnderWay if
        another process is creating it.
        """
        return self.performer.perform(groups.create_group(gid, uids))

    def add_members(self, gid: str, uids: Iterable[str]) -> Group:
        """Add members, who begin after the newest message, 100 at a time. Raise RedisFull: it says how many are in."""
        return self.performer.perform(groups.add_members(gid, uids))

    def remove_members(self, gid: str, uids: Iterable[str]) -> Group:
        """End memberships. What a leaver had read stays read. A uid that is no member is ignored."""
        return self.performer.perform(groups.remove_members(gid, uids))

    def delete_group(self, gid: str) -> DeletedGroup:
        """Delete a group, its messages and all receipts, in Redis and in SQL; return how many messages it had.

        From the first step on there is no such group for anybody. A process that dies, or an error after that, leaves
        the rest to the same call again, or to a worker. A new group may have the gid once all is gone. Raise TryAgain
        while the group is created, repaired or deleted by another process; DatabaseUnavailable, DatabaseNotReady.
        """
        return self.performer.perform(deletion.delete_group(gid))

    def group(self, gid: str) -> Group:
        """Return what a group is now."""
        return self.performer.perform(groups.group(gid))

    def groups(self) -> Iterator[Group]:
        """Yield all groups, by gid."""
        return self.performer.stream(groups.groups())

    def members(self, gid: str) -> Iterator[Member]:
        """Yield the current members of a group, by uid."""
        return self.performer.stream(groups.members(gid))

    def member(self, gid: str, uid: str) -> Member:
        """Return one current member of a group. Raise NotMember."""
        return self.performer.perform(groups.member(gid, uid))

    def online(self, uids: Iterable[str]) -> set[str]:
        """Return those of the users who have a live session."""
        return self.performer.perform(groups.online(uids))

    def send(
        self,
        gid: str,
        content: str,
        *,
        sender_uid: str,
        client_msgid: str | None = None,
        sent_at: datetime | None = None,
        meta: Mapping[str, Any] | None = None,
        durable: Durable | None = None,
    ) -> Message:
        """Store a message, and tell every member who is online.

        A client_msgid makes it safe to repeat: for 24 hours (IM_IDEMPOTENCY_MS) the same sender's same client_msgid in
        that group is answered with the message it made the first time. `meta` is a JSON object of at most 4096 bytes
        (IM_MAX_META_BYTES) beside the text, such as a kind or an attachment: nothing here reads it, and a recall
        deletes it. `durable` (IM_DURABLE) waits until a replica has the message (`replicated`) or the server's disk
        (`fsynced`), at most IM_DURABLE_MS: NotDurable says that it is stored, but not confirmed. The same client_msgid
        asks and waits again. A server that cannot confirm is refused before anything is stored: ConfigurationError, or
        RedisRefuses if it has no replica now. Raise NotMember, RedisFull, NotDurable.
        """
        return self.performer.perform(
            messages.send(
                self.system.settings,
                gid,
                Draft(sender_uid, content, meta=meta),
                client_msgid=client_msgid,
                sent_at=sent_at,
                durable=durable,
            )
        )

    def send_many(
        self, gid: str, drafts: Iterable[Draft], *, durable: Durable | None = None
    ) -> list[Message | ImError]:
        """Store messages of one group in their order, in few calls: each costs the server half of what `send` does.

        Return for each the message, or why it was not stored: NotMember, RedisFull, or RedisUnavailable, after which
        that is unknown. Raise InvalidInput before any is stored if one cannot be. `durable` is as in `send`, with one
        wait for all; a message that is not confirmed has NotDurable in its place.
        """
        return self.performer.perform(messages.send_many(self.system.settings, gid, drafts, durable=durable))

    def ack_many(
        self, gid: str, acks: Iterable[tuple[str, str | None]], *, private: bool = False
    ) -> list[Ack | ImError]:
        """Do many acks, each a uid and a msgid (None: the newest), in a call for each msgid.

        Return for each what `ack` returns, or the error that it would raise. Raise InvalidInput before any is done.
        """
        return self.performer.perform(positions.ack_many(gid, acks, private=private))

    def recall(self, gid: str, msgid: str, *, by: str, admin: bool = False) -> Message:
        """Recall a message: its content is deleted, and it is unread for nobody. Return the tombstone that members get.

        Only its sender may, or an `admin`. A message that is recalled already is returned as it is, without a second
        tombstone. Raise UnknownMessage, NotSender, and InvalidInput for a tombstone.
        """
        return self.performer.perform(messages.recall(gid, msgid, by=by, admin=admin))

    def send_direct(
        self,
        uid: str,
        content: str,
        *,
        sender_uid: str,
        client_msgid: str | None = None,
        meta: Mapping[str, Any] | None = None,
        durable: Durable | None = None,
    ) -> Message:
        """Send one-to-one. The first send creates the chat of the two (or with oneself); its gid is `direct.gid_of`.

        All else is as in `send`.
        """
        return self.performer.perform(
            messages.send_direct(
                self.system.settings,
                uid,
                Draft(sender_uid, content, meta=meta),
                client_msgid=client_msgid,
                durable=durable,
            )
        )

    def pull(self, uid: str, gid: str | None = None, *, limit: int | None = None) -> list[Message]:
        """Return what a user has not acked, oldest first, without gaps: own messages are included.

        Without a gid: of all their groups, by gid; then `limit` is per group. Raise NotMember if a gid is given.
        """
        return list(self.performer.stream(messages.pull(uid, gid, limit=limit)))

    def history(
        self,
        uid: str,
        gid: str,
        *,
        before: str | None = None,
        after: str | None = None,
        around: str | None = None,
        first_unread: bool = False,
        limit: int = 50,
    ) -> HistoryPage:
        """Return a page of what a member may see, oldest first: at most `limit` (1 to 500) messages since they joined.

        Without a cursor: the newest. `before` and `after`: those next to that msgid, without itself. `around`: that
        message in the middle, with one older message more than newer ones if there is an odd rest. `first_unread`:
        around the first unread message, or the newest if all is read. A msgid need not be of this group: it is a place
        in its order. Recalled messages have no content, and their tombstones are messages of the page, as in `pull`.
        Raise NotMember; InvalidInput for two cursors.
        """
        return self.performer.perform(
            history.history(uid, gid, before=before, after=after, around=around, first_unread=first_unread, limit=limit)
        )

    def erase_user(self, uid: str) -> ErasedUser:
        """Erase a user: their texts and name are gone from every answer and from all that is stored; counts stay.

        Messages keep their places, without text, from `erased-` and 16 hex digits. A one-to-one chat gets another gid.
        The same uid is a new user afterwards, and can join no group before. If it was interrupted, call it again. It
        takes seconds, or minutes for many messages. Raise TryAgain while others rebuild or repair Redis.
        """
        from imcore.admin.erasure import erase_user  # noqa: PLC0415 (it takes longer to load than most calls take)

        return erase_user(self.system, uid)

    def groups_of(self, uid: str) -> list[str]:
        """Return the gids of a user's groups, in order."""
        return self.performer.perform(groups.groups_of(uid))

    def known_user(self, uid: str) -> str:
        """Return a uid unchanged. Raise UnknownUser for one who is in no group."""
        return self.performer.perform(groups.known_user(uid))

    def ack(self, uid: str, gid: str, msgid: str | None = None, *, private: bool = False) -> Ack:
        """Confirm everything up to a message, the newest if none is given. An older ack than before moves no offset.

        An ack of a message that `mark_unread` has marked, or of a later one, removes the mark; an older ack than before
        does so, too. With `private` it is for the user alone: less is unread, and a session or a pull begins after it,
        but the offset stays and nobody else can tell. `advanced` then says whether less is unread. A later ack that is
        not private takes the offset along. Raise NotMember; UnknownMessage for a msgid that is not of this group.
        """
        return self.performer.perform(positions.ack(uid, gid, msgid, private=private))

    def delivered(self, uid: str, gid: str, msgid: str) -> Delivery:
        """Note that one message has arrived at a user's client without its app, as a push notification does.

        Where a message of others before it has not arrived yet, nothing moves, wherever that message is stored. Return
        the position up to which all has arrived. A gateway notes by itself what arrives at its sessions. Raise
        NotMember; UnknownMessage for a msgid that is not of this group.
        """
        return self.performer.perform(positions.delivered(uid, gid, msgid))

    def mark_unread(self, uid: str, gid: str, msgid: str) -> Unread:
        """Mark a message and all later ones unread, for the user alone. Return what is unread then.

        Earlier messages then count as read, for that user alone. It is one of the newest 100 messages of the group,
        said since they joined, and no tombstone. Receipts stay: the message was read. Raise NotMember, UnknownMessage,
        InvalidInput.
        """
        return self.performer.perform(positions.mark_unread(uid, gid, msgid))

    def unmark(self, uid: str, gid: str) -> Unread:
        """Remove the user's mark of a group, if there is one. Return what is unread then. Raise NotMember."""
        return self.performer.perform(positions.unmark(uid, gid))

    def unread(self, uid: str) -> UnreadCounts:
        """Return what a user has not read in each of their groups, by gid; own messages do not count.

        On a cluster of which a node is silent it is a part of them, which says so (`silent`).
        """
        return self.performer.perform(positions.unread(uid))

    def inbox(self, uid: str, *, limit: int = 50, after: str | None = None, unread_only: bool = False) -> InboxPage:
        """Return a page of a user's groups, at most `limit` (1 to 500), and the totals of all their groups.

        The group with the latest message comes first. Messages from before the user joined, recalled ones and
        tombstones do not count; groups without another one come last, by gid. `after` is the `next` of the page before:
        a group that has moved up meanwhile is on no later page: begin again at the first page to see it. `unread_only`:
        only groups with unread messages. Of a cluster of which a node is silent, the page says so (`silent`). Raise
        InvalidInput.
        """
        return self.performer.perform(inbox.inbox(uid, limit=limit, after=after, unread_only=unread_only))

    def gateway(self, **options: Unpack[SessionOptions]) -> Gateway:
        """Return a gateway: the live sessions of many users over one connection.

        Options: `ack_every` (10), `ack_interval_s` (1.0), `acks` ("auto"), `receipts` ("push"),
        `page_bytes` (4 MiB); see `GatewayOptions`.
        """
        return Gateway(self.performer, self.system.settings, **options)

    def listen(
        self,
        uid: str,
        *,
        start: StartMode = "unread",
        after: Mapping[str, str] | None = None,
        **options: Unpack[SessionOptions],
    ) -> Listener:
        """Begin a live session, to be used in a `with`: an iterator of Message and Receipt.

        It begins with what was not acked, or where `start` and `after` say (see `Gateway.open`); then it is live.
        Options: those of `gateway`. Raise UnknownUser for one who is in no group.
        """
        self.known_user(uid)
        return Listener(self.gateway(**options), uid, start=start, after=after)

    def begin_session(self, uid: str) -> str:
        """Begin a session without pushes, kept alive by heartbeats; return its id. The user is online from now on."""
        return self.performer.perform(sessions.begin(uid, online_ms=self.system.settings.online_ms))

    def heartbeat(self, uid: str, session: str) -> list[Receipt]:
        """Keep a session alive (IM_ONLINE_MS from now on); return the receipts that wait. Raise SessionExpired."""
        return self.performer.perform(sessions.heartbeat(uid, session, online_ms=self.system.settings.online_ms))

    def end_session(self, uid: str, session: str) -> None:
        """End a session. The user is offline if it was their last one."""
        return self.performer.perform(sessions.end(uid, session))
