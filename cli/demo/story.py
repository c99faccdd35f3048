"""What happens in the first act of the demo, and the brute-force account of it that every answer is held against."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

from imcore.chat import Chat
from imcore.errors import ImError
from imcore.gateway.fanout import NewMessage, Session
from imcore.gateway.gateway import Gateway
from imcore.model.values import Message, MessageStatus, MessageTally

GID = "demo"
MEMBERS = tuple(f"user-{number:03}" for number in range(1, 201))
ONLINE = MEMBERS[:40]
SENDERS = ONLINE[:3]
LEAVER = ONLINE[-1]
NEWCOMER = "newcomer"
LATE_READER = MEMBERS[100]
MESSAGES = 100
TURNING_POINT = 50
"""After this message the leaver goes and the newcomer comes."""
LATE_READ = 60
ACK_EVERY = 10

_DELIVERY_S = 10


@dataclass(slots=True)
class Membership:
    """From when to when somebody was a member, and how far they have read; all as numbers of messages (seq)."""

    joined: int = 0
    left: int = MESSAGES
    acked: int = 0


@dataclass(frozen=True, slots=True)
class Played:
    """What happened: the messages, how long each of their arrivals took, and what each online member received."""

    messages: tuple[Message, ...]
    arrival_ms: tuple[float, ...]
    received: dict[str, list[str]]

    @property
    def median_ms(self) -> float:
        """The median time from the call of send to the arrival at an online member."""
        return median(self.arrival_ms)


def account() -> dict[str, Membership]:
    """Return what must have come of the story for each member."""
    members = {uid: Membership() for uid in MEMBERS}
    for uid in ONLINE:
        members[uid].acked = MESSAGES
    members[LEAVER] = Membership(left=TURNING_POINT, acked=TURNING_POINT)
    members[NEWCOMER] = Membership(joined=TURNING_POINT)
    members[LATE_READER].acked = LATE_READ
    return members


def readers(message: Message) -> tuple[set[str], set[str]]:
    """Return who must have read a message, and who must not have."""
    recipients = {
        uid: member
        for uid, member in account().items()
        if member.joined < message.seq <= member.left and uid != message.sender_uid
    }
    read = {uid for uid, member in recipients.items() if member.acked >= message.seq}
    return read, set(recipients) - read


def tally_holds(tally: MessageTally) -> bool:
    """Whether a tally is what the account says."""
    read, unread = readers(tally.message)
    return (tally.read, tally.unread) == (len(read), len(unread))


def names_hold(status: MessageStatus) -> bool:
    """Whether the names of readers and the others are what the account says."""
    return ({reader.uid for reader in status.read_by}, set(status.unread_by)) == readers(status.message)


def unread_of(uid: str) -> int:
    """Return how many messages a current member must have left to read; own ones do not count."""
    member = account()[uid]
    return sum(1 for seq, sender in _senders() if member.acked < seq and member.joined < seq and sender != uid)


def play(chat: Chat) -> Played:
    """Let it happen: messages that are pushed to the online members, who ack in batches; a leaver and a newcomer."""
    chat.create_group(GID, MEMBERS)
    with chat.gateway(ack_every=ACK_EVERY) as gateway:
        stage = _Stage(chat, gateway)
        for seq, sender in _senders():
            stage.send(seq, sender)
            if seq == TURNING_POINT:
                stage.turn()
        online = len(chat.online(MEMBERS))
        if online != len(ONLINE) - 1:
            raise ImError(f"{online} members are online, not {len(ONLINE) - 1}")
    missed = chat.pull(LATE_READER, GID)
    chat.ack(LATE_READER, GID, missed[LATE_READ - 1].msgid)
    return stage.played()


def settle(gateway: Gateway, sessions: Iterable[Session], gid: str) -> None:
    """Poll until the sessions have subscribed to a group: from then on every message of it comes to them.

    An own message that somebody sent before counts as read, and need not.
    """
    starting = list(sessions)
    give_up = time.monotonic() + _DELIVERY_S
    while starting := [each for each in starting if gid not in each.cursors or each.cursors[gid].behind]:
        if time.monotonic() > give_up:
            raise ImError(f"{len(starting)} sessions have not begun within {_DELIVERY_S} s")
        gateway.poll(0.01)


def _senders() -> Iterator[tuple[int, str]]:
    return zip(range(1, MESSAGES + 1), cycle(SENDERS), strict=False)


class _Stage:
    """The online members, in one process and over one connection, as a gateway holds them."""

    def __init__(self, chat: Chat, gateway: Gateway) -> None:
        self._chat = chat
        self._gateway = gateway
        self._sessions: dict[str, Session] = {uid: gateway.open(uid) for uid in ONLINE}
        self._messages: list[Message] = []
        self._arrival_ms: list[float] = []
        self._received: dict[str, list[str]] = {uid: [] for uid in ONLINE}
        settle(gateway, self._sessions.values(), GID)

    def send(self, seq: int, sender: str) -> None:
        """Send one message and wait until all who are online have it."""
        began = time.perf_counter()
        message = self._chat.send(GID, f"message {seq}", sender_uid=sender, client_msgid=f"{sender}/{seq}")
        self._messages.append(message)
        missing = set(self._sessions)
        while missing:
            for arrived in self._arrivals():
                self._arrival_ms.append((time.perf_counter() - began) * 1000)
                for session in arrived.sessions:
                    self._received[session.uid].append(arrived.message.msgid)
                    missing.discard(session.uid)
            if time.perf_counter() - began > _DELIVERY_S:
                raise ImError(f"message {seq} has not reached {len(missing)} online members within {_DELIVERY_S} s")

    def turn(self) -> None:
        """One goes, with all read so far; one comes."""
        self._gateway.end(self._sessions.pop(LEAVER))
        self._chat.remove_members(GID, [LEAVER])
        self._chat.add_members(GID, [NEWCOMER])

    def played(self) -> Played:
        """Return what happened."""
        return Played(tuple(self._messages), tuple(self._arrival_ms), self._received)

    def _arrivals(self) -> Sequence[NewMessage]:
        return [event for event in self._gateway.poll(0.1) if isinstance(event, NewMessage)]
