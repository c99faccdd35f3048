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
    rewinds: Counter[str] = field(default_factory=Counter)
    """How often something was taken back, by gid."""
    others: Counter[str] = field(default_factory=Counter)

    def rewind(self, gid: str, after: str | None) -> None:
        """Forget what was handed over after a message, all if there is none: it was taken back."""
        last = msgids.pack(after) if after else 0
        self.msgids[gid] = [msgid for msgid in self.msgids[gid] if msgids.pack(msgid) <= last]
        self.rewinds[gid] += 1


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
            case ["receipts", _, at, receipts]:
                for gid, msgid, read, unread in receipts:
                    if at >= told_at.get((gid, msgid), 0.0):
                        told_at[gid, msgid] = at
                        self.tallies[gid, msgid] = read, unread
            case ["begun" | "joined", *values]:
                _begin(own, *values)
            case [kind, *values, numbers]:
                for number in numbers:
                    _hear(own[number], kind, *values)


def _begin(own: dict[int, Heard], number: int, who_or_gid: str, begins: dict[str, str | None] | str | None) -> None:
    session = own[number]
    if isinstance(begins, dict):
        session.uid = who_or_gid
        session.begins.update(begins)
    else:
        session.begins[who_or_gid] = begins


def _hear(session: Heard, kind: str, *values: Any) -> None:
    match kind, *values:
        case "message", gid, msgid, _, _:
            session.msgids[gid].append(msgid)
        case "rewound", gid, after:
            session.rewind(gid, after)
        case _:
            session.others[kind] += 1


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
    for message in messages:
        intent = told.intents.get(message.client_msgid or "")
        if intent is None or (message.sender_uid, message.content) != (intent.uid, content_of(intent.client_msgid)):
            faults.append(f"{gid}: nobody has sent {message}")
    stored = msgids_by_client(messages)
    for client_msgid, msgid in told.confirmed:
        if told.intents[client_msgid].gid == gid and msgid not in stored.get(client_msgid, ()):
            faults.append(f"{gid}: {client_msgid} was confirmed as {msgid} and is {stored.get(client_msgid)}")
    return faults


def doubles_of(messages: list[ModelMessage]) -> dict[str | None, list[str]]:
    """Return the msgids of the messages of a group that are stored more than once, by client_msgid."""
    return {cid: own for cid, own in msgids_by_client(messages).items() if len(own) > 1}


def msgids_by_client(messages: list[ModelMessage]) -> dict[str | None, list[str]]:
    """Return the msgids of messages by their client_msgid."""
    stored: dict[str | None, list[str]] = defaultdict(list)
    for message in messages:
        stored[message.client_msgid].append(message.msgid)
    return stored


class Deliveries(NamedTuple):
    """How the messages of a group came to the sessions."""

    faults: list[str]
    ghosts: set[str]
    """The msgids of pushed messages that no server has."""
    handed: int
    returns: int
    """How often a session went back, since messages that its server had lost came back before where it was."""
    unheard: int
    """How many of these, sent by a session's own user, it was not handed: it goes back to the offset of its user, which
    a send moves, too."""


def deliveries_of(gid: str, messages: list[ModelMessage], sessions: Iterable[Heard], *, came_back: bool) -> Deliveries:
    """Hold what each session was handed against what is stored: from its begin on, each once, in order, no holes.

    A session that a kill has ended may lack the end. Where lost messages came back it may have returned: to them and to
    what follows, in order again.
    """
    place = {message.msgid: number for number, message in enumerate(messages)}
    packed = [msgids.pack(message.msgid) for message in messages]
    faults, ghosts, handed, returns, unheard = [], set(), 0, 0, 0
    for session in sessions:
        heard = session.msgids.get(gid, [])
        ghosts.update(msgid for msgid in heard if msgid not in place)
        real = [place[msgid] for msgid in heard if msgid in place]
        handed += len(real)
        if gid not in session.begins:
            faults += [f"{gid}: {session.uid} was handed messages of a group that has not begun"] if heard else []
            continue
        first = _first_after(session.begins[gid], packed)
        if session.rewinds[gid]:
            first = min([first, *real])  # it may have gone back before its begin
        runs = _runs(real)
        missing = set(range(first, max(real, default=first - 1) + 1)) ^ set(real)
        if came_back and all(messages[number].sender_uid == session.uid for number in missing):
            returns += len(runs) - 1
            unheard += len(missing)
        elif missing or len(runs) > 1:
            faults.append(f"{gid}: {session.uid} began at {first} and was handed {_in_short(runs)}")
    return Deliveries(faults, ghosts, handed, returns, unheard)


def _runs(places: list[int]) -> list[list[int]]:
    """Split a list of places wherever it does not grow."""
    runs: list[list[int]] = [[]]
    for place in places:
        if runs[-1] and place <= runs[-1][-1]:
            runs.append([])
        runs[-1].append(place)
    return runs


def _in_short(runs: list[list[int]]) -> str:
    """Say where places leave the order: where each run begins and ends, and what it leaves out."""
    return "; ".join(
        f"{run[0]} to {run[-1]} without {sorted(set(range(run[0], run[-1])) - set(run))}" for run in runs if run
    )


def _first_after(begin: str | None, packed: list[int]) -> int:
    """Return the place of the first message after a begin, which may be a ghost that the user had acked."""
    return 0 if begin is None else bisect_right(packed, msgids.pack(begin))


def group_of(messages: list[ModelMessage], offsets: dict[str, str | None]) -> ModelGroup:
    """Return the group in the form of the brute-force model: all members have been there from the beginning."""
    seqs = {message.msgid: message.seq for message in messages}
    return ModelGroup(
        messages, [ModelSpan(uid, 0, None, seqs[offset] if offset else 0) for uid, offset in offsets.items()]
    )
