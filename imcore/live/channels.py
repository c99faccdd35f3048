"""What a gateway listens to: the inboxes of its users and the rooms of their groups, over one subscription."""

from collections.abc import Callable, Iterable

from imcore.live.rooms import Room, Session
from imcore.live.subscription import Heard, Subscription
from imcore.streams.link import Link

Change = Callable[[Iterable[str]], None]


class Channels:
    """Keeps which channels somebody here listens to, and subscribes to these.

    Every change may raise RedisUnavailable: then the subscription is dead, the change is kept, and `reopen` makes it.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._subscription: Subscription | None = None
        self._inboxes: dict[str, dict[Session, None]] = {}
        self._rooms: dict[str, Room] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is a subscription."""
        return self._subscription is not None

    def reopen(self) -> None:
        """Listen on a new connection. Every session is behind until the channel of its group stands again."""
        for room in self._rooms.values():
            for session in room:
                room.fall_behind(session)
        subscription = Subscription(self._link)
        try:
            subscription.add([*self._inboxes, *self._rooms])
        except BaseException:
            subscription.close()
            raise
        self._subscription = subscription

    def close(self) -> bool:
        """End the subscription; return whether there was one."""
        subscription, self._subscription = self._subscription, None
        if subscription:
            subscription.close()
        return subscription is not None

    def read(self, timeout_s: float) -> list[Heard]:
        """Return what came, after waiting at most so long for the first; nothing without a subscription."""
        return self._subscription.read(timeout_s) if self._subscription else []

    def inbox(self, channel: str) -> Iterable[Session]:
        """Return whose inbox a channel is."""
        return self._inboxes.get(channel, ())

    def room_at(self, channel: str) -> Room | None:
        """Return the room that a channel is of."""
        return self._rooms.get(channel)

    def room(self, gid: str) -> Room | None:
        """Return the room of a group, if somebody follows it."""
        return self._rooms.get(self._link.space.group(gid).channel)

    def open_inboxes(self, session: Session) -> bool:
        """Listen to a user's inboxes; return whether somebody here does so already."""
        inboxes = self._link.space.inboxes(session.uid)
        fresh = [channel for channel in inboxes if channel not in self._inboxes]
        for channel in inboxes:
            self._inboxes.setdefault(channel, {})[session] = None
        self._subscribe(fresh)
        return not fresh

    def close_inboxes(self, session: Session) -> None:
        """Stop listening to a user's inboxes, unless another session does."""
        silent = []
        for channel in self._link.space.inboxes(session.uid):
            sessions = self._inboxes.get(channel, {})
            sessions.pop(session, None)
            if not sessions and self._inboxes.pop(channel, None) is not None:
                silent.append(channel)
        self._unsubscribe(silent)

    def open_room(self, room: Room) -> None:
        """Listen to a group that nobody here has followed. All are behind until its channel stands."""
        channel = self._link.space.group(room.gid).channel
        self._rooms[channel] = room
        self._subscribe([channel])

    def close_room(self, room: Room) -> None:
        """Stop listening to a group."""
        channel = self._link.space.group(room.gid).channel
        if self._rooms.pop(channel, None) is not None:
            self._unsubscribe([channel])

    def _subscribe(self, channels: list[str]) -> None:
        if self._subscription and channels:
            self._subscription.add(channels)

    def _unsubscribe(self, channels: list[str]) -> None:
        if self._subscription and channels:
            self._subscription.remove(channels)
