"""What must be so in the end, by the records of those who sent, read and listened.

Messages are what SQL holds, once that was compared with the answers to those who sent. A push whose message no server
has is a *ghost*: a primary that was replaced had already pushed it. Ghosts are counted apart.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import text

from imcore import Chat
from imcore import msgid as msgids
from tests.helpers.cluster_soak.records import records_of
from tests.helpers.cluster_soak.storm import Intent, content_of
from tests.model.reference import ModelGroup, ModelMessage, ModelSpan


class Confirmed(NamedTuple):
    """An answer to a send."""

    client_msgid: str
    msgid: str


@dataclass
class Told:
    """What all storms have written down."""

    intents: dict[str, Intent] = field(default_factory=dict)
    confirmed: list[Confirmed] = field(default_factory=list)
    acked: dict[tuple[str, str], str] = field(default_factory=dict)
    """The furthest msgid that a reader's ack was answered with, by gid and uid."""
    acks: int = 0
    holes: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Told":
        """Read the records."""
        told = cls()
        for path in paths:
            for kind, *values in records_of(path):
                told._add(kind, values)
        return told

    def _add(self, kind: str, values: list[Any]) -> None:
        if kind == "say":
            intent = Intent(*values)
            self.intents[intent.client_msgid] = intent
        elif kind == "sent":
            self.confirmed.append(Confirmed(*values[1:3]))
        elif kind == "acked":
            gid, uid, _, offset = values
            self.acks += 1
            self.acked[gid, uid] = max(self.acked.get((gid, uid), offset), offset, key=msgids.pack)
        else:
            self.holes.append(values)


@dataclass
class Heard:
    """What one session was handed: where it began in each group, and the msgids from there on.

    Messages may come before it is known to have begun; a kill may come between the two.
    """

    uid: str = ""
    begins: dict[str, str | None] = field(default_factory=dict)
    msgids: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: Counter[str] = field(default_factory=Counter)


@dataclass
class Sessions:
    """What all sessions were handed, and the last tallies that senders were told."""

    heard: list[Heard] = field(default_factory=list)
    tallies: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Sessions":
        """Read the records, one file for each process."""
        sessions = cls()
        told_at: dict[tuple[str, str], float] = {}
        for path in paths:
            own: dict[int, Heard] = defaultdict(Heard)
            for record in records_of(path):
                sessions._add(record, own, told_at)
            sessions.heard += filter(lambda heard: heard.uid, own.values())
        return sessions

    def _add(self, record: list[Any], own: dict[int, Heard], told_at: dict[tuple[str, str], float]) -> None:
        match record:
            case ["begun", number, uid, begins]:
                own[number].uid = uid
                own[number].begins.update(begins)
            case ["joined", number, gid, after]:
                own[number].begins[gid] = after
            case ["message", gid, msgid, _, _, numbers]:
                for number in numbers:
                    own[number].msgids[gid].append(msgid)
            case ["receipts", _, at, receipts]:
                for gid, msgid, read, unread in receipts:
                    if at >= told_at.get((gid, msgid), 0.0):
                        told_at[gid, msgid] = at
                        self.tallies[gid, msgid] = read, unread
            case [kind, numbers]:
                for number in numbers:
                    own[number].others[kind] += 1


def stored_messages(chat: Chat, gid: str) -> list[ModelMessage]:
    """Return the messages of a group that SQL holds, in order."""
    query = "SELECT msgid, seq, sender_uid, content, client_msgid FROM group_msgs WHERE gid = :gid ORDER BY msgid"
    with chat.system.database.connection() as connection:
        rows = connection.execute(text(query), {"gid": gid}).all()
    return [ModelMessage(msgids.unpack(msgid), *values) for msgid, *values in rows]


def faults_of_messages(gid: str, messages: list[ModelMessage], told: Told) -> list[str]:
    """Return what is lost, doubled or wrong among the stored messages of a group."""
    faults = []
    if [message.seq for message in messages] != list(range(1, len(messages) + 1)):
        faults.append(f"{gid}: the seqs are not dense")
    counts = Counter(message.client_msgid for message in messages)
    faults += [f"{gid}: {cid} is stored {times} times" for cid, times in counts.items() if times > 1]
    for message in messages:
        intent = told.intents.get(message.client_msgid or "")
        if intent is None or (message.sender_uid, message.content) != (intent.uid, content_of(intent.client_msgid)):
            faults.append(f"{gid}: nobody has sent {message}")
    stored = {message.client_msgid: message.msgid for message in messages}
    for client_msgid, msgid in told.confirmed:
        if told.intents[client_msgid].gid == gid and stored.get(client_msgid) != msgid:
            faults.append(f"{gid}: {client_msgid} was confirmed as {msgid} and is {stored.get(client_msgid)}")
    return faults


class Deliveries(NamedTuple):
    """How the messages of a group came to the sessions."""

    faults: list[str]
    ghosts: set[str]
    """The msgids of pushed messages that no server has."""
    handed: int


def deliveries_of(gid: str, messages: list[ModelMessage], sessions: Iterable[Heard]) -> Deliveries:
    """Hold what each session was handed against what is stored: from its begin on, each once, in order, no holes.

    A session that a kill has ended may lack the end.
    """
    stored = [message.msgid for message in messages]
    place = {msgid: number for number, msgid in enumerate(stored)}
    packed = [msgids.pack(msgid) for msgid in stored]
    faults, ghosts, handed = [], set(), 0
    for session in sessions:
        heard = session.msgids.get(gid, [])
        ghosts.update(msgid for msgid in heard if msgid not in place)
        real = [place[msgid] for msgid in heard if msgid in place]
        handed += len(real)
        if gid not in session.begins:
            faults += [f"{gid}: {session.uid} was handed messages of a group that has not begun"] if heard else []
            continue
        first = _first_after(session.begins[gid], packed)
        if real != list(range(first, first + len(real))):
            faults.append(f"{gid}: {session.uid} began at {first} and was handed {_in_short(real, first)}")
    return Deliveries(faults, ghosts, handed)


def _first_after(begin: str | None, packed: list[int]) -> int:
    """Return the place of the first message after a begin, which may be a ghost that the user had acked."""
    return 0 if begin is None else bisect_right(packed, msgids.pack(begin))


def _in_short(places: list[int], first: int) -> str:
    """Say where a list of places leaves the order."""
    for number, at in enumerate(places):
        if at != first + number:
            return f"{places[max(0, number - 3) : number + 6]} around its {number}-th of {len(places)}"
    return "nothing wrong"


def group_of(messages: list[ModelMessage], offsets: dict[str, str | None]) -> ModelGroup:
    """Return the group in the form of the brute-force model: all members have been there from the beginning."""
    seqs = {message.msgid: message.seq for message in messages}
    return ModelGroup(
        messages, [ModelSpan(uid, 0, None, seqs[offset] if offset else 0) for uid, offset in offsets.items()]
    )
