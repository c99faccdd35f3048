"""What a gateway listens to: the inboxes of its users and the rooms of their groups, over one subscription. No I/O."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from imcore.gateway.fanout import GroupSubscribers, Session
from imcore.streams.keys import Keyspace

MOST_UNDER_WAY = 5000
"""So many changes wait for their confirmation at most: a server keeps little for a subscriber that does not read."""


@dataclass(eq=False, slots=True)
class Inbox:
    """The channels of a user, one of each partition: once all of them are listened to, it `stands`."""

    uid: str
    missing: int
    sessions: dict[Session, None] = field(default_factory=dict)

    @property
    def stands(self) -> bool:
        """Whether all that concerns the user is pushed here from now on."""
        return self.missing == 0


class Channels:
    """Keeps which channels somebody here listens to, and what has to change at the server so that it is so."""

    def __init__(self, space: Keyspace) -> None:
        self._space = space
        self._inboxes: dict[str, Inbox] = {}
        self._at: dict[str, Inbox | GroupSubscribers] = {}
        self._rooms: dict[str, GroupSubscribers] = {}
        self._to_drop: dict[str, None] = {}
        self._to_add: dict[str, None] = {}
        self._dropping: Counter[str] = Counter()
        self._adding: Counter[str] = Counter()

    @property
    def is_empty(self) -> bool:
        """Whether nothing has to be listened to."""
        return not self._at

    def at(self, channel: str) -> Inbox | GroupSubscribers | None:
        """Return what a channel is of."""
        return self._at.get(channel)

    def rooms(self) -> Iterator[GroupSubscribers]:
        """Yield all rooms."""
        yield from list(self._rooms.values())

    def room(self, gid: str) -> GroupSubscribers | None:
        """Return the room of a group, if somebody follows it."""
        return self._rooms.get(gid)

    def open_room(self, gid: str) -> GroupSubscribers:
        """Return the room of a group, and listen to it if nobody here has."""
        room = self._rooms.get(gid)
        if room is None:
            room = self._rooms[gid] = GroupSubscribers(gid)
            self._add(self._space.group(gid).channel, room)
        return room

    def close_room(self, room: GroupSubscribers) -> None:
        """Stop listening to a group that nobody follows any more."""
        del self._rooms[room.gid]
        self._drop(self._space.group(room.gid).channel)

    def open_inbox(self, session: Session) -> Inbox:
        """Return a user's inbox, for one session more."""
        inbox = self._inboxes.get(session.uid)
        if inbox is None:
            channels = self._space.inboxes(session.uid)
            inbox = self._inboxes[session.uid] = Inbox(session.uid, len(channels))
            for channel in channels:
                self._add(channel, inbox)
        inbox.sessions[session] = None
        return inbox

    def close_inbox(self, session: Session) -> None:
        """Stop listening to a user's inbox, unless another session does."""
        inbox = self._inboxes[session.uid]
        del inbox.sessions[session]
        if not inbox.sessions:
            del self._inboxes[session.uid]
            for channel in self._space.inboxes(session.uid):
                self._drop(channel)

    # What has to change, and what is known to have changed.

    def begin_anew(self) -> None:
        """Nothing is listened to on a new connection: all has to be added."""
        self._to_drop.clear()
        self._dropping.clear()
        self._adding.clear()
        self._to_add = dict.fromkeys(self._at)
        for room in self._rooms.values():
            room.stands = False
        for inbox in self._inboxes.values():
            inbox.missing = self._space.partitions

    def has_changes(self) -> bool:
        """Return whether something has to change, and may now."""
        return bool(self._to_drop or self._to_add) and self._room_for() > 0

    def changes(self) -> tuple[list[str], list[str]]:
        """Return which channels to drop, and which to add then; the news of it is awaited from now on."""
        drop = _taken(self._to_drop, self._room_for())
        self._dropping.update(drop)
        # Nothing is added before what is to be dropped is: it may be the same channel.
        add = [] if self._to_drop else _taken(self._to_add, self._room_for())
        self._adding.update(add)
        return drop, add

    def added(self, channel: str) -> Inbox | GroupSubscribers | None:
        """Note that a channel is listened to; return what stands by that."""
        if not _confirmed(self._adding, channel) or channel in self._adding or channel in self._to_add:
            return None  # dropped and added again meanwhile: the news of that is still to come
        of = self._at.get(channel)
        if isinstance(of, GroupSubscribers):
            of.stands = True
            return of
        if of is not None:
            of.missing -= 1
        return of if of and of.stands else None

    def dropped(self, channel: str) -> bool:
        """Note that a channel is not listened to any more; return whether that was wanted."""
        return _confirmed(self._dropping, channel)

    def _add(self, channel: str, of: Inbox | GroupSubscribers) -> None:
        self._at[channel] = of
        self._to_add[channel] = None

    def _drop(self, channel: str) -> None:
        del self._at[channel]
        if channel in self._to_add:
            del self._to_add[channel]
        else:
            self._to_drop[channel] = None

    def _room_for(self) -> int:
        return MOST_UNDER_WAY - len(self._dropping) - len(self._adding)


def _taken(channels: dict[str, None], most: int) -> list[str]:
    taken = list(islice(channels, most))
    for channel in taken:
        del channels[channel]
    return taken


def _confirmed(awaited: Counter[str], channel: str) -> bool:
    """Return whether news of a channel was awaited; it is so once less now."""
    if not awaited[channel]:
        return False
    awaited[channel] -= 1
    if not awaited[channel]:
        del awaited[channel]
    return True
