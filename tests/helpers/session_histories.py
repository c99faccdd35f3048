"""Random histories of a chat with live sessions, and a plain model of what each session has to be handed."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from imcore import Chat, Event, Gap, Gateway, Joined, Left, Message, NewMessage, Session
from imcore.gateway.request import StartMode
from tests.helpers.deadline import wait_until
from tests.helpers.gateways import kill_connections
from tests.helpers.talk import leave_to_sql

UIDS = ("bob", "cy", "dan")
GIDS = ("team", "home")

Item = Joined | Left | tuple[int, int]
"""A join, a leave, or the seqs of the first and the last message that was handed over or left out."""


@dataclass
class ModelGroup:
    """The messages of a group by their seqs, and the memberships of each user: from seq to seq."""

    seqs: dict[str, int] = field(default_factory=dict)
    trimmed: int = 0
    spans: dict[str, list[list[int | None]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def head(self) -> int:
        return len(self.seqs)

    def note(self, message: Message) -> None:
        self.seqs[message.msgid] = message.seq
        assert message.seq == self.head

    def is_member(self, uid: str) -> bool:
        return bool(self.spans[uid]) and self.spans[uid][-1][1] is None

    def joined(self, uid: str) -> int:
        """The seq after which the present membership of a user begins."""
        begin = self.spans[uid][-1][0]
        assert begin is not None
        return begin


@dataclass
class ModelSession:
    """A session, and where it began: by gid, after which seq."""

    uid: str
    most: int | None
    begins: dict[str, int]
    items: dict[str, list[Item]] = field(default_factory=lambda: defaultdict(list))


class SessionHistory:
    """Plays a history by chance. `check` compares what the sessions were handed with the model."""

    def __init__(self, chat: Chat, other: Chat, gateway: Gateway, seed: int) -> None:
        self.dice = random.Random(seed)
        self.chat, self.other, self.gateway = chat, other, gateway
        self.groups = {gid: ModelGroup() for gid in GIDS}
        self.sessions: dict[Session, ModelSession] = {}
        self.over: list[ModelSession] = []
        self._returned: list[Event] = []
        for gid, group in self.groups.items():
            uids = [uid for uid in UIDS if self.dice.random() < 0.7]
            other.create_group(gid, ["ann", *uids])
            for uid in uids:
                group.spans[uid].append([0, None])

    def play(self, steps: int) -> None:
        often = [self.send, self.send, self.send, self.poll, self.poll]
        seldom = [self.begin, self.end, self.pause, self.resume, self.resume, self.join_or_leave, self.recall]
        rarely = [self.trim, self.lose_subscription, self.requeue]
        for _ in range(steps):
            kind = self.dice.choices([often, seldom, rarely], [6, 4, 1])[0]
            self.dice.choice(kind)()

    # What people do.

    def send(self) -> None:
        gid = self.dice.choice(GIDS)
        for number in range(self.dice.choice([1, 1, 1, 2, 30])):
            self.groups[gid].note(self.other.send(gid, f"{number}", sender_uid="ann"))

    def recall(self) -> None:
        gid = self.dice.choice(GIDS)
        sent = [message for message in self.other.pull("ann", gid) if message.recalls is None and not message.recalled]
        if sent:
            self.groups[gid].note(self.other.recall(gid, self.dice.choice(sent).msgid, by="ann"))

    def join_or_leave(self) -> None:
        gid, uid = self.dice.choice(GIDS), self.dice.choice(UIDS)
        group = self.groups[gid]
        if group.is_member(uid):
            self.other.remove_members(gid, [uid])
            group.spans[uid][-1][1] = group.head
        else:
            self.other.add_members(gid, [uid])
            group.spans[uid].append([group.head, None])

    def trim(self) -> None:
        gid = self.dice.choice(GIDS)
        group = self.groups[gid]
        later = list(group.seqs)[group.trimmed :]
        if later:
            msgid = self.dice.choice(later)
            group.trimmed = group.seqs[msgid]
            leave_to_sql(self.other, msgid, gid)

    # What happens to sessions.

    def begin(self) -> None:
        if len(self.sessions) > 5:
            return
        uid = self.dice.choice(UIDS)
        start: StartMode = self.dice.choice(["unread", "live", "join"])
        most = self.dice.choice([None, 0, 1, 3, 10])
        after = {gid: self._some_msgid(gid) for gid in GIDS if self.dice.random() < 0.3}
        begins = dict(self._begins(uid, start, after))
        session = self.gateway.open(uid, start=start, after=after, most=most)
        assert {gid: self._seq(gid, start.after) for gid, start in session.starts.items()} == begins
        self.sessions[session] = ModelSession(uid, most, begins)

    def _begins(self, uid: str, start: StartMode, after: dict[str, str]) -> Iterator[tuple[str, int]]:
        offsets = {each.gid: self._seq(each.gid, each.last_ack_msgid) for each in self.other.unread(uid)}
        for gid, group in self.groups.items():
            if not group.is_member(uid):
                continue
            if gid in after:
                yield gid, max(self._seq(gid, after[gid]), group.joined(uid))
            else:
                yield gid, {"unread": offsets[gid], "live": group.head, "join": group.joined(uid)}[start]

    def _some_msgid(self, gid: str) -> str:
        return self.dice.choice(["0-0", *self.groups[gid].seqs])

    def _seq(self, gid: str, msgid: str | None) -> int:
        return self.groups[gid].seqs[msgid] if msgid and msgid != "0-0" else 0

    def end(self) -> None:
        if len(self.sessions) > 3:
            session = self.dice.choice(list(self.sessions))
            self.gateway.end(session, clean=self.dice.random() < 0.5)
            self.over.append(self.sessions.pop(session))
            self._note_returned()

    def pause(self) -> None:
        self._one(self.gateway.pause)

    def resume(self) -> None:
        self._one(self.gateway.resume)

    def _one(self, action: Callable[[Session], None]) -> None:
        if self.sessions:
            action(self.dice.choice(list(self.sessions)))

    def lose_subscription(self) -> None:
        kill_connections(self.other.system.client.driver, "pubsub")

    def requeue(self) -> None:
        """Some of what the last poll has returned comes again: it does not count."""
        count = self.dice.randrange(len(self._returned) + 1)
        self.gateway.requeue(count)
        del self._returned[len(self._returned) - count :]

    def poll(self) -> None:
        self._note_returned()
        paused = {session for session in self.sessions if session.is_paused}
        self._returned = self.gateway.poll(self.dice.choice([0.0, 0.0, 0.02]))
        assert not any(paused.intersection(event.sessions) for event in self._returned)

    def _note_returned(self) -> None:
        for event in self._returned:
            for session in event.sessions:
                if session in self.sessions:
                    self._note(self.sessions[session], event)
        self._returned = []

    def _note(self, model: ModelSession, event: Event) -> None:
        if isinstance(event, NewMessage):
            seq = event.message.seq
            assert self._seq(event.message.gid, event.message.msgid) == seq
            model.items[event.message.gid].append((seq, seq))
        elif isinstance(event, Gap):
            seqs = self._seq(event.gid, event.from_msgid), self._seq(event.gid, event.to_msgid)
            model.items[event.gid].append(seqs)
        elif isinstance(event, Joined | Left):
            model.items[event.gid].append(event)

    def settle(self) -> None:
        """Resume all, and poll until they are live; then say something more."""
        for session in self.sessions:
            self.gateway.resume(session)
        self.until(self._all_are_there)
        for gid, group in self.groups.items():
            group.note(self.other.send(gid, "the last", sender_uid="ann"))
        self.until(self._all_are_there)
        self.until(lambda: not self._poll())

    def _all_are_there(self) -> bool:
        return all(self._is_there(session) for session in self.sessions)

    def until(self, condition: Callable[[], object]) -> None:
        """Poll until the condition holds."""

        def holds() -> object:
            self._poll()
            return condition()

        wait_until(holds)

    def _poll(self) -> list[Event]:
        self._note_returned()
        events = self._returned = self.gateway.poll(0.02)
        self._note_returned()
        return events

    def _is_there(self, session: Session) -> bool:
        heads = {gid: group.head for gid, group in self.groups.items() if group.is_member(session.uid)}
        return {gid: cursor.seq for gid, cursor in session.cursors.items() if not cursor.behind} == heads

    # What must hold.

    def check(self) -> None:
        for model in [*self.sessions.values(), *self.over]:
            for gid, group in self.groups.items():
                check_items(model, gid, group)
        for model in self.sessions.values():
            for gid, group in self.groups.items():
                check_complete(model, gid, group)


def check_items(model: ModelSession, gid: str, group: ModelGroup) -> None:
    """Everything comes at most once, in order, within a membership; joins and leaves alternate around it."""
    is_in, at = gid in model.begins, model.begins.get(gid, 0)
    for item in model.items[gid]:
        if isinstance(item, Joined | Left):
            assert isinstance(item, Left) == is_in, "a join or leave that is none"
            is_in = not is_in
            continue
        first, last = item
        assert is_in, "a message of a group that the session does not know of"
        assert at < first <= last, "a double, or out of order"
        [(begin, end)] = [span for span in _spans(model, group) if span[0] < first and last <= span[1]]
        assert first == max(at, begin, model.begins.get(gid, 0)) + 1, "a hole"
        at = last
        assert end >= last


def check_complete(model: ModelSession, gid: str, group: ModelGroup) -> None:
    """A member has everything up to the last message, and knows of the membership."""
    items = model.items[gid]
    changes = [item for item in items if isinstance(item, Joined | Left)]
    is_in = isinstance(changes[-1], Joined) if changes else gid in model.begins
    assert is_in == group.is_member(model.uid)
    if is_in:
        assert items[-1][1] == group.head, "the last message is missing"  # type: ignore[index]


def _spans(model: ModelSession, group: ModelGroup) -> list[tuple[int, int]]:
    return [(begin or 0, group.head if end is None else end) for begin, end in group.spans[model.uid]]
