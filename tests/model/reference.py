"""The whole system by brute force: every definition of the design as a loop, with nothing clever and nothing shared.

A group is a list of messages and a list of spans; the seq of a message is its place in the list, from 1. Whatever is
asked is found by looking at every pair of a message and a span. The one thing taken over from the system is the msgid,
which only the server can give. `imcore.errors` is used for the names of refusals.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from imcore import msgid as msgids
from imcore.errors import GroupExists, InvalidInput, NotAllowed, NotMember, NotSender, UnknownGroup, UnknownMessage


@dataclass
class ModelMessage:
    """A message, at its place in the group."""

    msgid: str
    seq: int
    sender_uid: str
    content: str
    client_msgid: str | None
    recalled: bool = False
    recalls: str | None = None
    meta: dict[str, Any] | None = None


@dataclass
class ModelSpan:
    """A membership: the messages after `joined`, up to and with `left` (None: it goes on). `acked` is the offset.

    All up to `arrived` has come to some client, or up to `acked` if that is further. `private` is up to where the
    member has read in private, `mark` is the place after which they have marked all unread. `acked_by` gives for each
    seq the number of the ack that confirmed it.
    """

    uid: str
    joined: int
    left: int | None
    acked: int
    arrived: int = 0
    private: int = 0
    mark: int | None = None
    acked_by: dict[int, int] = field(default_factory=dict)

    @property
    def delivered(self) -> int:
        return max(self.acked, self.arrived)

    @property
    def read(self) -> int:
        """Up to where the member has read, whoever may know it."""
        return max(self.acked, self.private)

    @property
    def unread_after(self) -> int:
        return self.read if self.mark is None else self.mark

    def covers(self, seq: int) -> bool:
        """Whether the message was said while this membership lasted."""
        return self.joined < seq and (self.left is None or seq <= self.left)


@dataclass
class ModelGroup:
    """A group: all it ever was."""

    messages: list[ModelMessage] = field(default_factory=list)
    spans: list[ModelSpan] = field(default_factory=list)
    receipts_policy: str = "names"
    asked_by: str = "sender"

    @property
    def newest(self) -> int:
        """The seq of the newest message, 0 without one."""
        return len(self.messages)

    def members(self) -> list[str]:
        """The uids of the current members, in their order."""
        return sorted(span.uid for span in self.spans if span.left is None)

    def current(self, uid: str) -> ModelSpan:
        """The span of a current member."""
        for span in self.spans:
            if span.uid == uid and span.left is None:
                return span
        raise NotMember

    def msgid(self, seq: int) -> str | None:
        """The msgid of a seq; None for the position before the first message."""
        return self.messages[seq - 1].msgid if seq else None

    def with_msgid(self, msgid: str) -> ModelMessage:
        """The message of that msgid."""
        for message in self.messages:
            if message.msgid == msgid:
                return message
        raise UnknownMessage

    def with_client_msgid(self, client_msgid: str) -> ModelMessage | None:
        """The message that carries that client_msgid, whoever sent it."""
        for message in self.messages:
            if message.client_msgid == client_msgid:
                return message
        return None

    def said_to(self, uid: str) -> list[ModelMessage]:
        """The messages that were said while the user was a member."""
        return [m for m in self.messages if any(span.uid == uid and span.covers(m.seq) for span in self.spans)]

    def receipts(self, message: ModelMessage) -> dict[str, bool]:
        """For every recipient, whether they have read the message."""
        return {
            span.uid: span.acked >= message.seq
            for span in self.spans
            if span.covers(message.seq) and span.uid != message.sender_uid
        }

    def deliveries(self, message: ModelMessage) -> dict[str, bool]:
        """For every recipient, whether the message has arrived."""
        return {
            span.uid: span.delivered >= message.seq
            for span in self.spans
            if span.covers(message.seq) and span.uid != message.sender_uid
        }

    def read_by_ack(self, message: ModelMessage) -> dict[str, int]:
        """For everyone who has read the message, the number of the ack by which they did."""
        return {
            span.uid: span.acked_by[message.seq]
            for span in self.spans
            if span.covers(message.seq) and span.uid != message.sender_uid and span.acked >= message.seq
        }


@dataclass
class Model:
    """All groups. Methods raise what the system must raise, and then have changed nothing."""

    groups: dict[str, ModelGroup] = field(default_factory=dict)
    acks: int = 0
    receipts_off: set[str] = field(default_factory=set)
    """Users each of whose acks is private."""

    def group(self, gid: str) -> ModelGroup:
        """The group, or UnknownGroup."""
        if gid not in self.groups:
            raise UnknownGroup
        return self.groups[gid]

    def create_group(self, gid: str, uids: Iterable[str] = ()) -> None:
        """A new group; the same group again changes nothing."""
        if gid in self.groups:
            if self.groups[gid].members() != sorted(set(uids)):
                raise GroupExists
            return
        self.groups[gid] = ModelGroup()
        self.add_members(gid, uids)

    def add_members(self, gid: str, uids: Iterable[str]) -> None:
        """Add those who are no members: no earlier message is in the new span."""
        group = self.group(gid)
        for uid in uids:
            if uid not in group.members():
                group.spans.append(ModelSpan(uid, joined=group.newest, left=None, acked=group.newest))

    def remove_members(self, gid: str, uids: Iterable[str]) -> None:
        """Remove those who are members; they keep what they had read."""
        group = self.group(gid)
        for uid in uids:
            if uid in group.members():
                span = group.current(uid)
                span.left, span.private, span.mark = group.newest, 0, None

    def stored(self, gid: str, uid: str, client_msgid: str | None) -> ModelMessage | None:
        """The message that this send would only repeat: same group, sender and client_msgid."""
        group = self.groups.get(gid, ModelGroup())
        for message in group.messages:
            if client_msgid is not None and (message.sender_uid, message.client_msgid) == (uid, client_msgid):
                return message
        return None

    def send(
        self,
        gid: str,
        uid: str,
        content: str,
        client_msgid: str | None,
        msgid: str,
        meta: dict[str, Any] | None = None,
    ) -> ModelMessage:
        """Store a message under the msgid that the system gave it."""
        group = self.group(gid)
        group.current(uid)
        return self._append(group, ModelMessage(msgid, group.newest + 1, uid, content, client_msgid, meta=meta))

    def check_recall(self, gid: str, msgid: str, by: str, *, admin: bool) -> bool:
        """Whether there is still something to recall; raise what the recall must raise."""
        message = self.group(gid).with_msgid(msgid)
        if message.recalls:
            raise InvalidInput
        if not message.recalled and not admin and message.sender_uid != by:
            raise NotSender
        return not message.recalled

    def recall(self, gid: str, msgid: str, by: str, tombstone: str) -> ModelMessage:
        """Withdraw a message: a tombstone is said in its place, and neither counts as unread."""
        group = self.group(gid)
        message = group.with_msgid(msgid)
        message.content, message.recalled, message.meta = "", True, None
        return self._append(group, ModelMessage(tombstone, group.newest + 1, by, "", None, recalls=msgid))

    def _append(self, group: ModelGroup, message: ModelMessage) -> ModelMessage:
        """Say something. A sender who was caught up stays caught up."""
        caught_up = [
            span
            for span in group.spans
            if span.uid == message.sender_uid and span.left is None and span.acked == group.newest
        ]
        group.messages.append(message)
        for span in caught_up:
            span.acked = message.seq
        return message

    def ack(self, gid: str, uid: str, msgid: str | None = None) -> tuple[str | None, bool]:
        """Move the offset forward to a message of the group, or to the newest; return it and whether it moved."""
        if uid in self.receipts_off:
            return self.ack_in_private(gid, uid, msgid)
        group = self.group(gid)
        span = group.current(uid)
        target = group.newest if msgid is None else group.with_msgid(msgid).seq
        advanced = target > span.acked
        self.acks += advanced
        span.acked_by |= dict.fromkeys(range(span.acked + 1, target + 1), self.acks)
        span.acked = max(span.acked, target)
        self._unmark(span, target)
        return group.msgid(span.acked), advanced

    def ack_in_private(self, gid: str, uid: str, msgid: str | None = None) -> tuple[str | None, bool]:
        """Read up to a message, for the member alone; return the offset, and whether less is unread."""
        group = self.group(gid)
        span = group.current(uid)
        target = group.newest if msgid is None else group.with_msgid(msgid).seq
        before = span.unread_after
        self._unmark(span, target)
        if target > span.read:
            span.private = target
        return group.msgid(span.acked), span.unread_after > before

    def _unmark(self, span: ModelSpan, target: int) -> None:
        if span.mark is not None and target > span.mark:
            span.mark = None

    def delivered(self, gid: str, uid: str, msgid: str) -> tuple[str | None, bool]:
        """One message has arrived: that counts if nothing of others is missing before it."""
        group = self.group(gid)
        span = group.current(uid)
        target = group.with_msgid(msgid).seq
        missing = [m for m in group.messages if span.delivered < m.seq < target and m.sender_uid != uid]
        advanced = target > span.delivered and not missing
        if advanced:
            span.arrived = target
        return group.msgid(span.delivered), advanced

    def mark_unread(self, gid: str, uid: str, msgid: str) -> int:
        """All from a message on is unread for the member; return how much that is."""
        group = self.group(gid)
        span = group.current(uid)
        message = group.with_msgid(msgid)
        if message.seq <= span.joined:
            raise UnknownMessage
        if message.recalls or message.seq <= group.newest - 100:
            raise InvalidInput
        span.mark = message.seq - 1
        return self.unread(uid, gid)

    def unmark(self, gid: str, uid: str) -> int:
        self.group(gid).current(uid).mark = None
        return self.unread(uid, gid)

    def erase(self, uid: str, alias: str) -> None:
        """The user leaves all groups, and has another name and no texts; all else stays."""
        self.receipts_off.discard(uid)
        for group in self.groups.values():
            for span in group.spans:
                if span.uid == uid:
                    span.left = group.newest if span.left is None else span.left
                    span.uid, span.private, span.mark = alias, 0, None
            for message in group.messages:
                if message.sender_uid == uid:
                    message.sender_uid, message.content, message.client_msgid, message.meta = alias, "", None, None

    def may_ask(self, gid: str, by: str, message: ModelMessage) -> bool:
        """Whether a member may ask about a message. Raise NotMember, NotAllowed."""
        group = self.group(gid)
        span = group.current(by)
        if group.receipts_policy == "off":
            raise NotAllowed
        return message.sender_uid == by or (group.asked_by == "members" and message.seq > span.joined)

    def knows_names(self, gid: str, by: str) -> bool:
        return self.group(gid).receipts_policy == "names" and by not in self.receipts_off

    def groups_of(self, uid: str) -> list[str]:
        """The gids of the groups that the user is a member of, in their order."""
        return sorted(gid for gid, group in self.groups.items() if uid in group.members())

    def pull(self, uid: str, gid: str, limit: int | None = None) -> list[ModelMessage]:
        """What the member has not acked, their own messages included, oldest first."""
        group = self.group(gid)
        span = group.current(uid)
        return [m for m in group.messages if m.seq > span.read and span.covers(m.seq)][:limit]

    def unread_messages(self, uid: str, gid: str, *, after: int | None = None) -> list[ModelMessage]:
        """The messages of others that are unread for the member; no recalled ones, and no tombstones.

        After a seq that is given: for anybody else it is the offset.
        """
        group = self.group(gid)
        span = group.current(uid)
        after = span.unread_after if after is None else after
        said = [m for m in group.messages if m.seq > after and span.covers(m.seq)]
        return [m for m in said if not (m.sender_uid == uid or m.recalled or m.recalls)]

    def unread_for_others(self, uid: str, gid: str) -> int:
        """What anybody else is told that the member has not read."""
        return len(self.unread_messages(uid, gid, after=self.group(gid).current(uid).acked))

    def unread(self, uid: str, gid: str) -> int:
        return len(self.unread_messages(uid, gid))

    def inbox(self, uid: str) -> list[tuple[str, int, bool, str | None, ModelMessage | None]]:
        """For each group of a user, by its latest message: unread, whether marked, first unread msgid, that message."""
        lines = []
        for gid in self.groups_of(uid):
            unread = self.unread_messages(uid, gid)
            said = [m for m in self.visible(uid, gid) if not (m.recalled or m.recalls)]
            is_marked = self.groups[gid].current(uid).mark is not None
            lines.append((gid, len(unread), is_marked, unread[0].msgid if unread else None, said[-1] if said else None))
        return sorted(lines, key=lambda line: (-msgids.pack(line[4].msgid) if line[4] else 0, line[0]))

    def visible(self, uid: str, gid: str) -> list[ModelMessage]:
        """All that the member may see: what was said since they joined."""
        group = self.group(gid)
        span = group.current(uid)
        return [m for m in group.messages if span.covers(m.seq)]

    def uids(self) -> list[str]:
        """Everyone who was ever a member of a group."""
        return sorted({span.uid for group in self.groups.values() for span in group.spans})
