"""A process that speaks, reads and acks for its share of the people, until it is asked to end, or killed.

    python -m tests.helpers.soak.talker PLAN

PLAN is a file that `write_plan` wrote; beside it is the diary. Failed steps are repeated. Started again after a kill,
it goes on where its diary ends.
"""

import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TypeVar

from imcore import Chat
from imcore import msgid as msgids
from imcore.errors import TryAgain
from imcore.model.values import Message
from tests.helpers.soak.diary import DiaryFile, Said, Turn
from tests.helpers.soak.script import Line, Share

T = TypeVar("T")

PAUSE_S = 0.02
"""Between two turns, on average."""
GOES_ON = "going on"
"""What it says once it has finished what a kill had left open."""
_AGAIN_S = 0.05
_AT_ONCE = 50


def write_plan(path: Path, shares: list[Share], seed: int) -> None:
    """Write down what a talker has to do."""
    path.write_text(json.dumps({"seed": seed, "shares": [asdict(share) for share in shares]}))


def diary_of(plan: Path) -> Path:
    """Where the talker of a plan keeps its diary."""
    return plan.with_suffix(".diary")


def _read_plan(path: Path) -> tuple[int, list[Share]]:
    plan = json.loads(path.read_text())
    shares = [Share(**{**share, "lines": [Line(**line) for line in share["lines"]]}) for share in plan["shares"]]
    return plan["seed"], shares


def patiently(step: Callable[[], T]) -> T:
    """Return the result of a step; repeat it while a server is away."""
    while True:
        try:
            return step()
        except TryAgain:
            time.sleep(_AGAIN_S)


class Talker:
    """Takes turns: says a line, reads and acks for somebody, lets a guest come or go."""

    def __init__(self, chat: Chat, shares: list[Share], book: DiaryFile, chance: random.Random) -> None:
        self._chat = chat
        self._shares = {share.gid: share for share in shares}
        self._book = book
        self._diary = book.diary
        self._chance = chance

    def go_on(self) -> None:
        """Finish the step that a kill has left open: a line is sent again, or by chance given up."""
        if turn := self._diary.open_turn():
            self._finish(turn)
        line = self._diary.open_line()
        if line and self._chance.random() < 0.7:
            self._send(line)

    def turn(self) -> None:
        """Do one thing."""
        share = self._chance.choice(list(self._shares.values()))
        turns = {self._speak: 60 if share.lines else 0, self._read: 35, self._come_or_go: 5 if share.guests else 0}
        [turn] = self._chance.choices(list(turns), list(turns.values()))
        turn(share)

    def _speak(self, share: Share) -> None:
        number = self._diary.lines[share.gid]
        cycle, place = divmod(number, len(share.lines))
        line = share.lines[place]
        said = Said(share.gid, line.uid, f"{cycle}.{line.client_msgid}", number)
        self._book.note("say", *said)
        self._send(said)
        if self._chance.random() < 0.1:  # as if the answer had been lost, of this line or of one before
            confirmed = [
                each for each in self._diary.said[-20:] if (each.gid, each.client_msgid) in self._diary.answers
            ]
            self._send(self._chance.choice(confirmed))

    def _send(self, said: Said) -> None:
        lines = self._shares[said.gid].lines
        content = lines[said.number % len(lines)].content
        sent = patiently(
            lambda: self._chat.send(said.gid, content, sender_uid=said.uid, client_msgid=said.client_msgid)
        )
        assert (sent.content, sent.sender_uid, sent.client_msgid) == (content, said.uid, said.client_msgid), sent
        known = self._diary.answers.get((said.gid, said.client_msgid))
        assert known in {None, (sent.msgid, sent.seq)}, f"{known} was stored again, as {sent}"
        self._book.note("sent", said.gid, said.client_msgid, sent.msgid, sent.seq)

    def _read(self, share: Share) -> None:
        present = [uid for uid in share.guests if self._diary.is_in(share.gid, uid)]
        if not (share.readers or present):
            return
        uid = self._chance.choice([*share.readers, *present])
        pulled = patiently(lambda: self._chat.pull(uid, share.gid, limit=_AT_ONCE))
        assert [each.seq - pulled[0].seq for each in pulled] == list(range(len(pulled))), "a pull has holes"
        if target := self._to_ack(share.gid, pulled):
            self._book.note("acking", share.gid, uid, target)
            ack = patiently(lambda: self._chat.ack(uid, share.gid, target))
            assert ack.last_ack_msgid is not None
            assert msgids.pack(ack.last_ack_msgid) >= msgids.pack(target), ack
            self._book.note("acked", share.gid, uid, ack.last_ack_msgid)

    def _to_ack(self, gid: str, pulled: list[Message]) -> str | None:
        """Some message of those pulled; now and then one of long ago, which changes nothing."""
        confirmed = [answer.msgid for (answer_gid, _), answer in self._diary.answers.items() if answer_gid == gid]
        if pulled and self._chance.random() < 0.9:
            return self._chance.choice(pulled).msgid
        return self._chance.choice(confirmed[: len(confirmed) // 2]) if len(confirmed) > 1 else None

    def _come_or_go(self, share: Share) -> None:
        uid = self._chance.choice(share.guests)
        goes = self._diary.is_in(share.gid, uid)
        head = patiently(lambda: self._chat.group(share.gid)).messages
        turn = Turn(share.gid, uid, not goes, head, position=self._position(share.gid, uid) if goes else None)
        self._book.note("turns", *turn)
        self._finish(turn)

    def _finish(self, turn: Turn) -> None:
        change = self._chat.add_members if turn.comes else self._chat.remove_members
        head = patiently(lambda: change(turn.gid, [turn.uid])).messages
        position = self._position(turn.gid, turn.uid) if turn.comes else turn.position
        self._book.note("turned", *turn._replace(latest=head, position=position))

    def _position(self, gid: str, uid: str) -> str | None:
        positions = {position.gid: position for position in patiently(lambda: self._chat.unread(uid))}
        assert gid in positions, f"{uid} is no member of {gid}"
        return positions[gid].last_ack_msgid


def main() -> None:
    """Take turns until SIGTERM."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    path = Path(sys.argv[1])
    seed, shares = _read_plan(path)
    with DiaryFile(diary_of(path)) as book, Chat.connect() as chat:
        chance = random.Random(f"{seed} {len(book.diary.said)}")
        talker = Talker(chat, shares, book, chance)
        talker.go_on()
        print(GOES_ON, file=sys.stderr, flush=True)
        while not stopping:
            talker.turn()
            time.sleep(chance.uniform(0, 2 * PAUSE_S))


if __name__ == "__main__":
    main()
