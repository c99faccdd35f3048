"""Asks for what happened before a session could hear of it: groups that were joined and left. No I/O."""

from imcore.errors import ImError
from imcore.gateway.catch_up import CatchUp
from imcore.gateway.delay_queue import DelayQueue
from imcore.gateway.fanout import Session
from imcore.gateway.receipt_delivery import ReceiptDelivery
from imcore.operations import queries
from imcore.operations.effects import Effects
from imcore.streams.keys import Keyspace
from imcore.util.backoff import Clock, ThrottledLog

AT_ONCE = 64
"""For how many sessions is asked at once."""


class Resync:
    """A part. A session enters once its user's inbox stands: what happens from then on is pushed."""

    def __init__(
        self,
        space: Keyspace,
        todo: DelayQueue[Session],
        following: CatchUp,
        telling: ReceiptDelivery,
        trouble: ThrottledLog,
        clock: Clock,
    ) -> None:
        self._space = space
        self._todo = todo
        self._following = following
        self._telling = telling
        self._trouble = trouble
        self._clock = clock

    def due(self) -> float:
        """Return when somebody is to enter."""
        return self._todo.due()

    def go_on(self) -> Effects[None]:
        """Let some sessions enter."""
        some = self._todo.take(AT_ONCE, self._clock())
        try:
            groups = yield from queries.groups_or_errors(self._space, list({session.uid for session in some}))
        except BaseException:
            self._todo.add(some)
            raise
        for session in some:
            gids = groups[session.uid]
            if isinstance(gids, ImError):
                self._trouble.note(gids, "what groups some are in has to wait: %s")
                self._todo.postpone(session, self._clock())
            else:
                self._todo.done([session])
                self._enter(session, gids)

    def _enter(self, session: Session, gids: list[str]) -> None:
        for gid in session.feeds.keys() - set(gids):
            self._following.unfollow(session, gid)
        for gid in gids:
            if gid not in session.feeds:
                self._following.follow(session, gid)
        self._telling.want([session])
        if session.entered:
            session.reconnects += 1
        session.entered = True
