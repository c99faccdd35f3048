"""The traffic of a day: sessions come and go, talk and read, and now and then there is a join, a leave or a recall.

How many messages an hour has is taken from the #ubuntu channel: 0 to 6, 9 to 12 h UTC are counted in its logs of 2004
to 2007 (Kummerfeld et al., ACL 2019), those between them follow the course of a day. The day begins at 9 h.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from imcore.chat import Chat
from imcore.errors import NotMember
from imcore.gateway.fanout import NewMessage, Session
from imcore.gateway.gateway import Gateway
from imcore.model.direct import gid_of

MESSAGES_OF_HOURS = (
    *(725, 650, 167, 769, 952, 900, 850, 800, 750, 700, 650, 550),
    *(450, 350, 250, 154, 36, 36, 46, 181, 142, 28, 60, 200),
)
"""Per hour, from 9 h on."""

MEMBERS = 200
SMALL = 20
_SHARES = (40, 20, 15, 13, 12)
"""Of a hundred messages: in the channel, in two small groups, in two one-to-one chats."""
_ONLINE = 0.3
_STAYS = 0.7
_AT_ONCE = 15


@dataclass(slots=True)
class SteadyTraffic:
    """A channel of 200, two groups of 20 and two one-to-one chats, with their users' sessions on gateways.

    `uids` begin with `name`.
    """

    name: str
    chat: Chat
    gateways: Sequence[Gateway]
    chance: random.Random = field(default_factory=lambda: random.Random(20041225))
    sessions: dict[str, tuple[Gateway, Session]] = field(default_factory=dict)
    received: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        """Make the groups."""
        self.chat.create_group(self.gids[0], self.uids[:MEMBERS])
        for number, gid in enumerate(self.gids[1:3]):
            self.chat.create_group(gid, self.uids[number * SMALL : (number + 1) * SMALL])

    @property
    def uids(self) -> list[str]:
        """Everybody, a tenth of whom are not in the channel yet."""
        return [f"{self.name}-{number:03}" for number in range(MEMBERS + MEMBERS // 10)]

    @property
    def gids(self) -> list[str]:
        """The groups in order of their share, one-to-one chats last."""
        pairs = [gid_of(*self.uids[i : i + 2]) for i in (0, 2)]
        return [f"{self.name}-channel", f"{self.name}-one", f"{self.name}-two", *pairs]

    def play(self, messages: int) -> None:
        """Let users send messages, and do all that comes with them."""
        self._come_and_go()
        for start in range(0, messages, _AT_ONCE):
            for _ in range(min(_AT_ONCE, messages - start)):
                self._send()
            self.poll()

    def settle(self) -> None:
        """Let everybody who is online receive, ack and confirm what there is."""
        quiet = 0
        while quiet < 3:
            quiet = 0 if self.poll() else quiet + 1

    def poll(self) -> int:
        """Ask every gateway for events; return how many there were."""
        events = [event for gateway in self.gateways for event in gateway.poll(0.0)]
        self.received += sum(isinstance(event, NewMessage) for event in events)
        return len(events)

    def _come_and_go(self) -> None:
        for uid, (gateway, session) in list(self.sessions.items()):
            if self.chance.random() > _STAYS:
                gateway.end(session)
                del self.sessions[uid]
        offline = [uid for uid in self.uids if uid not in self.sessions]
        self.chance.shuffle(offline)
        for uid in offline[: max(0, round(_ONLINE * len(self.uids)) - len(self.sessions))]:
            gateway = self.chance.choice(self.gateways)
            self.sessions[uid] = gateway, gateway.open(uid)
        self.chat.begin_session(offline[-1])  # a client that dies without a goodbye

    def join_and_leave(self) -> None:
        """Let a member leave the channel, and somebody join it, who may have been there before."""
        self.chat.remove_members(self.gids[0], [self.chance.choice(self.uids[SMALL:])])
        self.chat.add_members(self.gids[0], [self.chance.choice(self.uids[SMALL:])])

    def _send(self) -> None:
        number = self.chance.choices(range(len(_SHARES)), weights=_SHARES)[0]
        uid = self._speaker(number)
        self.sent += 1
        text = "x" * self.chance.randint(10, 150)
        client_msgid = f"c{self.sent}" if self.sent % 4 else None
        if number > 2:
            self._send_direct(uid, text, client_msgid)
            return
        try:
            message = self.chat.send(self.gids[number], text, sender_uid=uid, client_msgid=client_msgid)
        except NotMember:
            return  # the speaker has left the channel
        if self.sent % 100 == 0:
            self.chat.recall(self.gids[number], message.msgid, by=uid)

    def _speaker(self, number: int) -> str:
        first = {1: 0, 2: SMALL, 3: 0, 4: 2}.get(number, 0)
        last = {1: SMALL, 2: 2 * SMALL, 3: 2, 4: 4}.get(number, len(self.uids))
        online = [uid for uid in self.uids[first:last] if uid in self.sessions]
        return self.chance.choice(online or self.uids[first:last])

    def _send_direct(self, uid: str, text: str, client_msgid: str | None) -> None:
        at = self.uids.index(uid)
        self.chat.send_direct(self.uids[at + 1 - 2 * (at % 2)], text, sender_uid=uid, client_msgid=client_msgid)


def hours(count: int, scale: float, parts: int) -> Iterator[list[int]]:
    """Yield for each hour how many messages each part of it has, at this scale of the channel's own traffic."""
    for messages in islice(cycle(MESSAGES_OF_HOURS), count):
        yield [max(1, round(messages * scale / parts))] * parts
