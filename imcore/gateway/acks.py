"""Acks: buffers what clients have confirmed, until it is sent in few calls. No I/O."""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile
from typing import Literal

from imcore.gateway.fanout import Recipients, Session
from imcore.streams.calls.message_calls import DeliveryTarget
from imcore.util.batches import grouped

AckKind = Literal["read", "private", "delivered"]
"""Clients confirm that they have read messages, that they have read them in private, or that messages have arrived."""

MOST_MESSAGES = 1000
"""The most messages of one group that wait: memory is bounded, whatever `ack_every` is."""


class GroupAcks:
    """The messages of one group that clients have confirmed, and that are not acked yet. One call acks all of them.

    Msgids are packed. Older messages are kept beside the newest: if the server refuses a user's newest message, the one
    before it is acked.
    """

    __slots__ = ("counts", "due", "ended", "gid", "is_full", "is_taken", "kind", "messages", "seqs", "shared")

    def __init__(self, gid: str, due: float, kind: AckKind = "read") -> None:
        self.gid = gid
        self.kind = kind
        self.due = due  # seconds of the monotonic clock
        self.is_full = False
        self.is_taken = False
        self.messages: dict[int, dict[Recipients, int]] = {}  # who has confirmed each, and since when without gaps
        self.seqs: dict[int, int] = {}
        self.counts: dict[Recipients, int] = {}  # of messages that they have received
        self.shared: set[Recipients] = set()  # of several sessions
        self.ended: dict[Recipients, set[Session]] = {}  # these sessions do not ack any more

    def targets(self) -> list[DeliveryTarget]:
        """Return the newest message of each recipient. The recipients of one message are one target."""
        targets = []
        for msgid, since, same in self._newest_first():
            uids = tuple(dict.fromkeys(uid for recipients in same for uid in self._uids(recipients)))
            if uids:
                targets.append(DeliveryTarget(msgid, uids, since, seq=self.seqs.get(msgid)))
        return targets

    def _newest_first(self) -> Iterator[tuple[int, int, list[Recipients]]]:
        """Yield messages, since when they were confirmed, and the recipients whose newest they are."""
        seen: set[object] = set()
        for msgid in sorted(self.messages, reverse=True):
            holders = self.messages[msgid]
            if self.kind == "delivered":
                pairs = [(since, each) for each, since in holders.items() if (since, each) not in seen]
                seen.update(pairs)
                for since, same in grouped(pairs).items():
                    yield msgid, since, same
            elif new := [each for each in holders if each not in seen]:
                seen.update(new)
                yield msgid, 0, new

    def again(self, msgids: Collection[int], refused: Collection[int]) -> "GroupAcks":
        """Return the acks of those whose newest message is one of these or refused, without the refused ones."""
        concerned = {
            each for msgid, _, same in self._newest_first() if msgid in msgids or msgid in refused for each in same
        }
        again = self._like()
        for msgid, recipients in self.messages.items():
            if msgid not in refused and (same := concerned.intersection(recipients)):
                again.messages[msgid] = {each: recipients[each] for each in same}
        return again

    def take_read(self, acks: "GroupAcks") -> "GroupAcks":
        """Take out, and return, the confirmations of recipients who have read as far, as other acks say."""
        newest = {each: msgid for msgid, _, same in acks._newest_first() for each in same}
        taken = self._like()
        for msgid, recipients in list(self.messages.items()):
            if read := {each: since for each, since in recipients.items() if newest.get(each, -1) >= msgid}:
                taken.messages[msgid] = read
                for each in read:
                    del recipients[each]
        return taken

    def only(self, uids: Collection[str]) -> "GroupAcks":
        """Return the acks of some users."""
        only = self._like()
        for msgid, recipients in self.messages.items():
            if own := {each: since for each, since in recipients.items() if any(uid in uids for uid in each.uids)}:
                only.messages[msgid] = own
        return only

    def note_private(self, uids: Collection[str]) -> None:
        """Note of the sessions of some users that what they ack stays private."""
        for recipients in self.messages.values():
            for session in (session for each in recipients for session in each.sessions if session.uid in uids):
                (session.whole or session).acks_privately = True

    def _like(self) -> "GroupAcks":
        """Return acks of the same kind that have no messages yet."""
        like = GroupAcks(self.gid, 0.0, self.kind)
        like.shared, like.ended, like.seqs = self.shared, self.ended, self.seqs
        return like

    def _uids(self, recipients: Recipients) -> tuple[str, ...]:
        return (recipients.without(self.ended[recipients]) if recipients in self.ended else recipients).uids

    def merge(self, other: "GroupAcks") -> None:
        for msgid, recipients in other.messages.items():
            self.messages.setdefault(msgid, {}).update(recipients)
        for each, sessions in other.ended.items():
            self.ended.setdefault(each, set()).update(sessions)
        self.shared |= other.shared
        self.seqs.update(other.seqs)

    def holds(self, session: Session) -> bool:
        """Return whether there is something that a session has confirmed."""
        own = {session.as_recipients, *self._shared_of(session)}
        return any(not own.isdisjoint(recipients) for recipients in self.messages.values())

    def _shared_of(self, session: Session) -> list[Recipients]:
        return [each for each in self.shared if session in each.session_set]

    def remove(self, session: Session) -> dict[int, int]:
        """Remove a session; return the messages that it has confirmed, and since when."""
        own, removed = session.as_recipients, {}
        shared = self._shared_of(session)
        for each in shared:
            self.ended.setdefault(each, set()).add(session)
        for msgid, recipients in self.messages.items():
            if own in recipients or any(each in recipients for each in shared):
                removed[msgid] = recipients.pop(own, 0)
        self.counts.pop(own, None)
        return removed


class AckBuffer:
    """Acks of a group are due after `every` messages of one of its sessions, or after `interval_s`.

    Clients that receive one message say so one after the other: so acks that are due by their number wait `fold_s` for
    those of other clients, and acks that are due a quarter of the interval later are taken with those that are due.
    """

    def __init__(self, every: int, interval_s: float, fold_s: float = 0.0, kind: AckKind = "read") -> None:
        self._kind = kind
        self._every = every
        self._interval_s = interval_s
        self._slack_s = interval_s / 4
        self._fold_s = min(fold_s, self._slack_s)
        self._waiting: dict[str, GroupAcks] = {}
        self._in_order: deque[GroupAcks] = deque()
        self._full: deque[tuple[float, GroupAcks]] = deque()
        self._requeued: dict[str, GroupAcks] = {}
        self._requeued_due = math.inf
        """No later than the first requeued ack is due."""

    def received(
        self, gid: str, recipients: Recipients, msgid: int, seq: int | None, now: float, since: int = 0
    ) -> bool:
        """Note that recipients have confirmed a message. Return whether acks are due earlier than before."""
        group = self._waiting.get(gid)
        is_earlier = group is None
        if group is None:
            group = self._waiting[gid] = GroupAcks(gid, now + self._interval_s, self._kind)
            self._in_order.append(group)
        holders = group.messages.get(msgid)
        if holders is None:
            holders = group.messages[msgid] = {}
        holders[recipients] = since
        if seq is not None:
            group.seqs[msgid] = seq
        if recipients.sessions[0].as_recipients is not recipients:
            group.shared.add(recipients)
        count = group.counts[recipients] = group.counts.get(recipients, 0) + 1
        if (count >= self._every or len(group.messages) >= MOST_MESSAGES) and not group.is_full:
            group.is_full = is_earlier = True
            self._full.append((now + self._fold_s, group))
        return is_earlier

    def next_due(self) -> float:
        if not self._waiting and not self._requeued:
            return math.inf
        self._pop_taken()
        full = self._full[0][0] if self._full else math.inf
        return min(full, self._requeued_due, self._in_order[0].due if self._in_order else math.inf)

    def take_due(self, now: float, *, with_others: bool = False) -> list[GroupAcks]:
        """Take out the acks that are due, at most once for each group; `with_others`: acks of another kind are due."""
        taken = {group.gid: group for group in self._take_requeued(now)}
        self._pop_taken()
        due = [group for until, group in self._full if until <= now]
        is_due = with_others or (self._in_order and self._in_order[0].due <= now)
        until = now + self._slack_s if is_due else now
        due += takewhile(lambda group: group.due <= until, self._in_order)
        for group in due:
            if not group.is_taken:
                self._take(group)
                if group.gid in taken:
                    taken[group.gid].merge(group)
                else:
                    taken[group.gid] = group
        return list(taken.values())

    def take_of(self, sessions: Iterable[Session]) -> list[GroupAcks]:
        """Take out the acks of these sessions in their groups; those of other sessions stay."""
        taken: dict[str, GroupAcks] = {}
        for session in sessions:
            for group, msgids in self._remove(session, session.gids):
                own = taken.setdefault(group.gid, GroupAcks(group.gid, 0.0, self._kind))
                own.seqs.update(group.seqs)
                for msgid, since in msgids.items():
                    own.messages.setdefault(msgid, {})[session.as_recipients] = since
        return list(taken.values())

    def forget(self, sessions: Iterable[Session], gid: str | None = None) -> None:
        """Drop the acks of sessions, in one group or in theirs: they have not received the messages, or will again."""
        for session in sessions:
            self._remove(session, session.gids if gid is None else {gid})

    def requeue(self, acks: Iterable[GroupAcks], not_before: float = 0.0) -> None:
        """Put back acks that failed: they are due at once, or at a time."""
        for group in acks:
            waiting = self._requeued.setdefault(group.gid, group)
            if waiting is not group:
                waiting.merge(group)
            waiting.due = not_before
            self._requeued_due = min(self._requeued_due, not_before)

    def holds(self, session: Session) -> bool:
        """Return whether something waits here that a session has confirmed."""
        return any(
            places[gid].holds(session)
            for places in (self._waiting, self._requeued)
            for gid in session.gids
            if gid in places
        )

    def _take_requeued(self, now: float) -> list[GroupAcks]:
        if self._requeued_due > now:
            return []
        due = [gid for gid, group in self._requeued.items() if group.due <= now]
        taken = [self._requeued.pop(gid) for gid in due]
        self._requeued_due = min((group.due for group in self._requeued.values()), default=math.inf)
        return taken

    def _remove(self, session: Session, gids: Iterable[str]) -> list[tuple[GroupAcks, dict[int, int]]]:
        """Take a session out of the acks of groups; return these, each with what it has confirmed."""
        places = [places[gid] for gid in gids for places in (self._waiting, self._requeued) if gid in places]
        return [(group, msgids) for group in places if (msgids := group.remove(session))]

    def _take(self, group: GroupAcks) -> None:
        group.is_taken = True
        del self._waiting[group.gid]

    def _pop_taken(self) -> None:
        while self._in_order and self._in_order[0].is_taken:
            self._in_order.popleft()
        while self._full and self._full[0][1].is_taken:
            self._full.popleft()
