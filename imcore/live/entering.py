"""Asks for what happened before a session could hear of it: groups that were joined and left. No I/O."""

from imcore import reading
from imcore.asking import Asking
from imcore.backoff import Clock, Trouble
from imcore.errors import ImError
from imcore.live.following import Following
from imcore.live.rooms import Session
from imcore.live.telling import Telling
from imcore.live.todo import Todo
from imcore.streams.keys import Keyspace

AT_ONCE = 64
"""For how many sessions is asked at once."""


class Entering:
    """A part. A session enters once its user's inbox stands: what happens from then on is pushed."""

    def __init__(
        self,
        space: Keyspace,
        todo: Todo[Session],
        following: Following,
        telling: Telling,
        trouble: Trouble,
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

    def go_on(self) -> Asking[None]:
        """Let some sessions enter."""
        some = self._todo.take(AT_ONCE, self._clock())
        try:
            groups = yield from reading.groups_or_why(self._space, list({session.uid for session in some}))
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
