"""Catching up: which sessions follow which groups, and pulls for those that are behind. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from imcore import msgid as msgids
from imcore.errors import DatabaseNotReady, ImError, NotMember, UnknownGroup, concerns_all
from imcore.gateway.channels import Channels
from imcore.gateway.cursor import Cursor, ResumePoint
from imcore.gateway.delivery_queue import DeliveryQueue
from imcore.gateway.fanout import Joined, Left, Rewound, Session
from imcore.gateway.own_positions import OwnPositions
from imcore.gateway.scheduler import DelayQueue
from imcore.gateway.sessions import ReceiptDelivery
from imcore.gateway.subscribers import GroupSubscribers
from imcore.operations import queries
from imcore.operations.effects import Effects, call_apart
from imcore.operations.queries import PAGE, MessagePage, MessagesByMsgid
from imcore.streams.calls import message_calls
from imcore.streams.calls.call import Call
from imcore.streams.calls.message_calls import HandedMessage, PullResult
from imcore.streams.keys import Keyspace
from imcore.streams.wire import PushedMessage
from imcore.util.backoff import Clock, ThrottledLog

CURSORS_PER_STEP = 64
CURSOR_BYTES = 65_536
"""Each cursor of a step may pull so much, or the step pulls for fewer."""
SESSIONS_PER_STEP = 64

_BYTES_BESIDE_TEXT = 128
"""Of a message, at least."""

JOINED = ResumePoint(0)
"""A group that was joined meanwhile begins with the join, even if another session has acked some of it already."""


@dataclass(eq=False)
class CatchUp:
    """Two tasks. `behind` pulls for cursors that are behind.

    `to_resync` fetches the groups of sessions whose inbox has just been subscribed: they may have missed news before.
    """

    _space: Keyspace
    _channels: Channels
    _deliveries: DeliveryQueue
    _forget_acks: Callable[[Sequence[Session], str], None]
    """Called for sessions that get messages of a group again."""
    _rewound: Callable[[Session, str, int], None]
    """Called for a session that was handed messages of a group after one (packed) that the server does not have."""
    _receipt_delivery: ReceiptDelivery
    _own_positions: OwnPositions
    _page_bytes: int
    """Of texts and metas, in one step."""
    _log: ThrottledLog
    _clock: Clock

    def __post_init__(self) -> None:
        cursors = max(1, min(CURSORS_PER_STEP, self._page_bytes // CURSOR_BYTES))
        missed, unknown = "what some have missed has to wait: %s", "what groups some are in has to wait: %s"
        self.behind = DelayQueue(self._pull_for, missed, self._log, self._clock, limit=cursors)
        self.to_resync = DelayQueue(self._resync, unknown, self._log, self._clock, limit=SESSIONS_PER_STEP)

    def follow(self, session: Session, gid: str) -> None:
        """Let a session follow a group from its resume point. A session that follows it already catches up."""
        subscribers = self._channels.open_group(gid)
        if gid not in session.cursors:
            cursor = subscribers.add(session, session.resume_points.pop(gid, JOINED))
            if subscribers.is_subscribed:  # or all cursors are put behind once it is
                self.behind.add([cursor])
        elif subscribers.is_subscribed:
            self.behind.add(subscribers.fall_behind(session.cursors[gid]))

    def unfollow(self, session: Session, gid: str) -> None:
        """Let a session follow a group no more. If it comes back, it does not get the same messages again."""
        subscribers = self._channels.groups[gid]
        session.resume_points[gid] = subscribers.remove(session)
        if subscribers.is_empty:
            self._channels.close_group(gid)

    def joined(self, session: Session, gid: str) -> None:
        """Tell a session that its user has joined a group, unless it follows it. A paused one learns it later."""
        if session.is_held:
            return
        if gid not in session.cursors:
            self._deliveries.ready.append(Joined(session.as_recipients, gid))
        self.follow(session, gid)

    def left(self, session: Session, gid: str) -> None:
        """Tell a session that its user has left a group, if it follows it."""
        if gid in session.cursors:
            self.unfollow(session, gid)
            if session.resume_points[gid] is None:
                del session.resume_points[gid]  # a later join begins with itself
            self._own_positions.forget_group(session, gid)
            self._deliveries.ready.append(Left(session.as_recipients, gid))

    def pause(self, session: Session) -> None:
        """Let a session follow nothing for now. It keeps a resume point for each group, and nothing else."""
        session.paused_gids = set(session.cursors)
        for gid in session.paused_gids:
            self.unfollow(session, gid)
        self.to_resync.discard(session)
        self._receipt_delivery.forget(session)
        self._own_positions.discard(session)
        self._deliveries.pause(session)

    def resume(self, session: Session) -> None:
        """Let a paused session catch up. What its user joined and left meanwhile is found by a resync."""
        gids, session.paused_gids = session.paused_gids or (), None
        for gid in gids:
            self.follow(session, gid)
        self.resync(session)

    def resync(self, session: Session) -> None:
        """Fetch the groups of a session; if its inbox is not subscribed yet, once it is."""
        if self._channels.open_inbox(session).is_subscribed:
            self.to_resync.add([session])

    def restart(self, session: Session, gid: str) -> None:
        """Let a session begin again at the offset: messages that Redis had lost are back, before its cursor."""
        subscribers = self._channels.groups.get(gid)
        if subscribers and gid in session.cursors:
            subscribers.remove(session)
            self.behind.add([subscribers.add(session, None)])
            self.to_resync.add([session])  # receipts have changed, too
        elif gid in (session.paused_gids or ()):
            session.resume_points[gid] = None
        else:
            return
        self._forget_acks([session], gid)
        self._deliveries.retract(session, gid)

    def pushed(self, subscribers: GroupSubscribers, pushed: PushedMessage) -> None:
        events, behind = subscribers.pushed(*pushed)
        self._deliveries.ready += events
        if behind:
            self.behind.add(behind)

    def fall_behind(self, subscribers: GroupSubscribers) -> None:
        """Let all subscribers of a group pull: pushes may have been missed."""
        for cursor in subscribers:
            self.behind.add(subscribers.fall_behind(cursor))

    def _pull_for(self, cursors: Sequence[Cursor]) -> Effects[dict[Cursor, ImError]]:
        """Pull a page for each cursor; return the errors of some.

        These wait alone: others may not need the database, and other groups may be on other nodes.
        """
        groups = self._channels.groups
        batch = [
            (subscribers, cursor)
            for cursor in cursors
            if cursor.behind and (subscribers := groups.get(cursor.gid)) and subscribers.sessions(cursor)
        ]
        most_bytes = min(queries.PAGE_BYTES, max(1, self._page_bytes // max(1, len(batch))))
        answers = yield from call_apart([self._pull(subscribers, cursor, most_bytes) for subscribers, cursor in batch])
        refused: dict[Cursor, ImError] = {}
        size = 0
        for (subscribers, cursor), answer in zip(batch, answers, strict=True):
            if size > self._page_bytes:
                self.behind.add([cursor])  # the pulls did not count the messages that SQL adds
            elif subscribers.sessions(cursor):
                taken = yield from self._take(subscribers, cursor, answer, most_bytes)
                if isinstance(taken, ImError):
                    refused[cursor] = taken
                else:
                    size += taken
        return refused

    def _pull(self, subscribers: GroupSubscribers, cursor: Cursor, most_bytes: int) -> Call[PullResult]:
        uids = subscribers.recipients(cursor).uids
        pull = message_calls.pull(
            *(self._space, cursor.gid, uids),
            after=cursor.msgid,
            count=max(1, min(PAGE, most_bytes // _BYTES_BESIDE_TEXT)),
            most_bytes=most_bytes,
            newest=cursor.most,
        )
        return message_calls.with_check(pull, cursor.handed)

    def _take(
        self, subscribers: GroupSubscribers, cursor: Cursor, answer: PullResult | ImError, most_bytes: int
    ) -> Effects[int | ImError]:
        """Take the answer to a pull; return the bytes that it has, or the error that the cursor waits for."""
        if isinstance(answer, NotMember | UnknownGroup):
            self._separate(subscribers, cursor, dict.fromkeys(subscribers.recipients(cursor).uids, answer))
            return 0
        if isinstance(answer, ImError):  # about this group, or about one partition while it moves to another node
            return answer
        if answer.parts_at is not None:
            return (yield from self._take_parting(subscribers, cursor, answer.parts_at, answer.process))
        self._separate(subscribers, cursor, self._begin_later(subscribers, cursor, answer.start) or answer.apart)
        if not subscribers.sessions(cursor):
            return 0
        try:
            pulled = yield from queries.begun(cursor.gid, answer)
            page = yield from queries.page(self._space, cursor.gid, pulled, PAGE, most_bytes)
        except ImError as error:
            if concerns_all(error):
                raise
            return error
        if not isinstance(page, ImError):
            self._hand_over(subscribers, cursor, pulled, page)
        return page if isinstance(page, ImError) else sum(map(queries.bytes_of, page.messages))

    def _take_parting(
        self, subscribers: GroupSubscribers, cursor: Cursor, parts_at: int, process: str
    ) -> Effects[int | ImError]:
        """Take back what no server has after a message (packed). If SQL has it, the workers bring it back to Redis."""
        lost = cursor.proof or cursor.msgid or msgids.NONE
        try:
            stored = yield from MessagesByMsgid(cursor.gid, [lost])
        except DatabaseNotReady:  # no worker has stored anything yet
            stored = {}
        except ImError as error:
            if concerns_all(error):
                raise
            return error
        if lost in stored and (not cursor.is_pushed or stored[lost].seq == cursor.seq):
            cursor.process = ""
            self.behind.add([cursor])
        else:
            self._rewind(subscribers, cursor, ResumePoint(parts_at, handed=HandedMessage(parts_at, process)))
        return 0

    def _rewind(self, subscribers: GroupSubscribers, cursor: Cursor, to: ResumePoint) -> None:
        """Let sessions begin again after a message, and tell them to forget what they were handed after it."""
        gid, recipients = cursor.gid, subscribers.recipients(cursor)
        self._log.note(
            ImError(f"the server has lost messages of {gid!r} after {msgids.unpack(to.msgid)}"),
            "%s: telling the sessions that have them",
        )
        for session in recipients.sessions:
            subscribers.remove(session)
            self.behind.add([subscribers.add(session, to)])
            self._deliveries.retract(session, gid, to.msgid)
            session.whole_after[gid] = min(to.msgid, session.whole_after.get(gid, msgids.NONE))
            self._rewound(session, gid, to.msgid)
        self._deliveries.ready.append(Rewound(recipients, gid, msgids.unpack_offset(to.msgid)))
        self.to_resync.add(recipients.sessions)  # receipts have changed, too

    def _hand_over(self, subscribers: GroupSubscribers, cursor: Cursor, pulled: PullResult, page: MessagePage) -> None:
        events, merged = subscribers.pulled(cursor, pulled, page)
        self._deliveries.ready += events
        if merged.msgid is None:
            for session in subscribers.sessions(merged):
                self.restart(session, cursor.gid)
        elif merged.behind:
            self.behind.add([merged])

    def _begin_later(self, subscribers: GroupSubscribers, cursor: Cursor, offset: int) -> dict[str, int]:
        """Return where the user of a cursor at the offset began the session, if that is later."""
        if cursor.msgid is not None:
            return {}
        starts = {session.uid: session.starts.get(cursor.gid) for session in subscribers.sessions(cursor)}
        return {uid: start.begin for uid, start in starts.items() if start and start.begin > offset}

    def _separate(self, subscribers: GroupSubscribers, cursor: Cursor, reasons: Mapping[str, int | ImError]) -> None:
        """Take users out of a cursor: those who are no members unfollow, and later joiners get another cursor."""
        for session in subscribers.sessions(cursor) if reasons else ():
            reason = reasons.get(session.uid)
            if isinstance(reason, ImError):
                self.left(session, cursor.gid)
            elif reason is not None:
                subscribers.remove(session)
                self.behind.add([subscribers.add(session, ResumePoint(reason))])

    def _resync(self, sessions: Sequence[Session]) -> Effects[dict[Session, ImError]]:
        groups = yield from queries.groups_or_errors(self._space, list({session.uid for session in sessions}))
        refused: dict[Session, ImError] = {}
        for session in sessions:
            gids = groups[session.uid]
            if session.is_held:
                continue
            if isinstance(gids, ImError):
                refused[session] = gids
            else:
                self._sync(session, gids)
        return refused

    def _sync(self, session: Session, gids: list[str]) -> None:
        for gid in session.cursors.keys() - set(gids):
            self.left(session, gid)
        for gid in gids:
            if gid not in session.cursors:
                self.joined(session, gid)
        self._receipt_delivery.fetch([session])
        self._own_positions.add([session])
        session.synced()
