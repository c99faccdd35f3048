"""Random histories, exported and imported into an empty system: it must be the same, but for msgids and times."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from typing import Any

import fakeredis
import pytest

from imcore import Chat
from imcore.cli.output import to_json
from imcore.exporter.exporter import Export
from imcore.model.direct import is_direct
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.client import RedisClient
from imcore.system import System
from tests.helpers.import_events import run_with_errors
from tests.model.compare import compare_all
from tests.model.examples import HISTORIES_WANTED, PARTITIONS
from tests.model.histories import GIDS, UIDS
from tests.model.reference import Model, ModelGroup
from tests.model.replay import replay
from tests.model.stored import WORKERS, StoredHistories

STEPS = (
    *["create_group", "send_direct", "ack_direct", "persist_all", "trim", "recall", "leave_and_return", "send_again"]
    * 2,
    *["join", "leave", "persist", "ack_all"] * 3,
    *["send", "talk", "recall"] * 6,
    *["ack"] * 10,
    *["arrive_in_order", "ack_in_private", "mark"] * 4,
)

Line = dict[str, Any]


def chat_on(database: Database) -> Chat:
    client = RedisClient(fakeredis.FakeRedis(server=fakeredis.FakeServer()), partitions=PARTITIONS)
    return Chat(System(client, database, replace(Settings.from_env({}), partitions=PARTITIONS)))


@contextmanager
def imported(lines: Sequence[bytes], database: Database) -> Iterator[Chat]:
    """Import lines into an empty system, twice: the second time must change nothing."""
    with chat_on(database) as chat:
        assert run_with_errors(chat, lines)[1] == []
        before = state(chat)
        run_with_errors(chat, lines)
        assert state(chat) == before
        yield chat


def state(chat: Chat) -> list[Any]:
    """All messages, tallies and members."""
    return [(group, chat.status(group.gid, limit=0), list(chat.members(group.gid))) for group in chat.groups()]


def exported(chat: Chat, gids: Sequence[str]) -> list[bytes]:
    return [f"{to_json(event)}\n".encode() for gid in gids for event in Export(chat).group(gid)]


def expected(chat: Chat, model: Model, lines: Sequence[Line]) -> Model:
    """The model with the msgids of another system, and with the client_msgids of a file."""
    other = deepcopy(model)
    for gid, group in other.groups.items():
        new = {old.msgid: t.message.msgid for old, t in zip(group.messages, chat.status(gid, limit=0), strict=True)}
        names = iter([line["client_msgid"] for line in lines if (line["gid"], line["type"]) == (gid, "message")])
        given: set[str | None] = set()
        for span in group.spans:
            span.private, span.mark = 0, None  # a group's export has what anybody may know
        for message in group.messages:
            own = message.client_msgid
            message.client_msgid = None if message.recalls else next(names)
            is_kept = own is not None and own not in given
            assert message.recalls or message.client_msgid == (own if is_kept else message.msgid)
            given.add(own)
            message.msgid = new[message.msgid]
            message.recalls = message.recalls and new[message.recalls]
    return other


def may_see(group: ModelGroup, uid: str) -> list[tuple[str, str]]:
    """Sender and content of what was said to a user, then of recalls that they have not heard of.

    A recall of a message from before the user came is left out.
    """
    said = group.said_to(uid)
    recalled = {message.recalls for message in said if message.recalls}
    seen = {message.msgid for message in said}
    unheard = [(message.sender_uid, "") for message in said if message.recalled and message.msgid not in recalled]
    return [(m.sender_uid, m.content) for m in said if m.recalls is None or m.recalls in seen] + unheard


class ExportedHistories(StoredHistories):
    """Steps by a seed. In the end everything is exported."""

    def __init__(self, open_chat: Callable[[], Chat], new_database: Callable[[], Database], seed: int) -> None:
        super().__init__(open_chat)
        self.new_database = new_database
        self.chance = random.Random(seed)

    def play(self, steps: int) -> None:
        self.begin()
        for _ in range(steps):
            name = self.chance.choice(STEPS)
            getattr(self, name)(*self.arguments(name))

    def arguments(self, name: str) -> list[Any]:
        """What a step is given, by the names of its parameters."""
        some: dict[str, Callable[[], Any]] = {
            "gid": lambda: self.chance.choice(GIDS),
            "uid": lambda: self.chance.choice(UIDS),
            "to": lambda: self.chance.choice(UIDS),
            "other": lambda: self.chance.choice(UIDS),
            "uids": lambda: self.chance.sample(UIDS, self.chance.randrange(4)),
            "content": lambda: self.chance.choice(["hi", "two\nlines", "\x1b[2J\u2028", "👍🏽", "群" * 21_000]),
            "client_msgid": lambda: self.chance.choice([None, "1", "2", "c 3", str(self.chance.random())]),
            "meta": lambda: self.chance.choice([None, {}, {"re\x1f": [1, None, {"群": "\x1e"}]}]),
            "back": lambda: self.chance.randrange(9),
            "admin": lambda: self.chance.random() < 0.5,
            "times": lambda: self.chance.randint(1, 4),
            "worker": lambda: self.chance.randrange(WORKERS),
            "keep": lambda: self.chance.randrange(4),
        }
        return [some[parameter]() for parameter in signature(getattr(self, name)).parameters]

    def end(self) -> None:
        self.export()
        for uid in UIDS:
            self.export_user(uid)

    def export(self) -> None:
        gids = sorted(self.model.groups)
        lines = exported(self.chat, gids)
        events = list(map(json.loads, lines))
        with imported(lines, self.new_database()) as chat:
            compare_all(chat, expected(chat, self.model, events))
            times = [
                [t.message.sent_at or t.message.time for t in each.status(gid, limit=0) if t.message.recalls is None]
                for gid in gids
                for each in (self.chat, chat)
            ]
            assert times[::2] == times[1::2]
            # What the contract says of these events, too, and an export of the copy
            model = Model()
            replay(
                model,
                [event for event in events if not is_direct(event["gid"]) or event["type"] in {"message", "ack"}],
                {gid: [tally.message.msgid for tally in chat.status(gid, limit=0)] for gid in gids},
            )
            assert exported(chat, gids) == lines

    def export_user(self, uid: str) -> None:
        """Compare what a user's export has with what the user may see."""
        events = [json.loads(to_json(event)) for event in Export(self.chat).user(uid)] if self.was_anywhere(uid) else []
        for gid, group in self.model.groups.items():
            of_group = [event for event in events if event["gid"] == gid]
            spans = [span for span in group.spans if span.uid == uid and span.joined != span.left]
            assert bool(of_group) == bool(spans)
            said = [event for event in of_group if event["type"] in {"message", "recall"}]
            assert [(event["uid"], event.get("content", "")) for event in said] == may_see(group, uid)
            rest = [event for event in of_group if event not in said]
            turns = [event["type"] for event in rest if event.get("uid") == uid and event["type"] in {"join", "leave"}]
            assert turns == ["join", "leave"] * (len(spans) - 1) + [
                *["join"] * bool(spans),
                *["leave"] * any(span.left is not None for span in spans[-1:]),
            ]
            others = [event["type"] for event in rest if event.get("uid", uid) != uid]
            assert others == ["join"] * (is_direct(gid) and bool(spans) and len(group.members()) - 1)
        if events:
            with imported([f"{json.dumps(event)}\n".encode() for event in events], self.new_database()) as chat:
                unread = {each.gid: (each.unread, each.marked) for each in chat.unread(uid)}
                for gid in self.model.groups_of(uid):
                    assert chat.member(gid, uid).unread == self.model.unread_for_others(uid, gid)
                    is_marked = self.model.group(gid).current(uid).mark is not None
                    assert unread[gid] == (self.model.unread(uid, gid), is_marked)

    def was_anywhere(self, uid: str) -> bool:
        spans = [span for group in self.model.groups.values() for span in group.spans if span.uid == uid]
        return any(span.joined != span.left for span in spans)


@pytest.mark.parametrize("seed", range(int(HISTORIES_WANTED or 16)))
def test_exported_and_imported_histories(new_database: Callable[[], Database], seed: int) -> None:
    histories = ExportedHistories(lambda: chat_on(new_database()), new_database, seed)
    with closing(histories.chat):
        histories.play(random.Random(seed).choice([5, 40, 120]))
        histories.end()
