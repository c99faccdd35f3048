"""Random imports against a brute-force reading of the contract: killed, grown, repeated, corrected, mixed with others.

`IM_MODEL_EXAMPLES` is the number of examples, as in test_histories.py.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from imcore import Chat
from imcore.admin.retention import trim
from imcore.importer.importer import ImportSummary, import_events
from imcore.repair.rebuild import rebuild
from imcore.settings import Settings
from imcore.sql.database import Database
from imcore.streams.calls.call import Call
from imcore.streams.client import RedisClient, open_client
from imcore.streams.rounds import Client
from imcore.system import System
from tests.helpers.import_events import lines
from tests.helpers.workers import store
from tests.model.compare import compare_group, compare_names, compare_offsets
from tests.model.examples import HISTORIES_WANTED
from tests.model.reference import Model
from tests.model.replay import replay

CASES = [("fakeredis", seed) for seed in range(int(HISTORIES_WANTED or 20))] + [("valkey", seed) for seed in range(4)]
GIDS = ("#g", "群主")
UIDS = "abcd"
EPOCHS = ("nothing", "persist", "trim", "forget")
"""What may happen between two runs: `forget` lets more than a day go by, and a rebuild needs a real server."""

Event = dict[str, Any]


class Killed(BaseException):
    """The process is killed."""


class MortalClient(RedisClient):
    """A client whose process is killed after some calls: before Redis gets the last one, or before its answer comes."""

    calls_left: int | None = None
    is_last_lost = False

    def call(self, call: Call[Any], *, repeatable: bool = True) -> Any:
        return self._until_killed(lambda: super(MortalClient, self).call(call, repeatable=repeatable))

    def call_each(self, batch: Sequence[Call[Any]], **options: Any) -> list[Any]:
        answers: list[Any] = self._until_killed(lambda: super(MortalClient, self).call_each(batch, **options))
        return answers

    def _until_killed(self, action: Callable[[], Any]) -> Any:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                if not self.is_last_lost:
                    action()
                raise Killed
        return action()


class Stores:
    """A Redis and a database. Each run on them is a process of its own."""

    def __init__(self, connect: Callable[[], Client], folder: Path, epochs: Sequence[str]) -> None:
        self.epochs = epochs
        self._connect = connect
        self._url = f"sqlite:///{folder / 'imcore.db'}"
        self._settings = replace(Settings.from_env({}, data_dir=str(folder)), partitions=2, block_ms=0, retry_ms=0)
        self.run([])

    def chat(self) -> Chat:
        """Return the Chat of a new process."""
        return Chat(System(MortalClient(self._connect(), partitions=2), Database.connect(self._url), self._settings))

    def run(self, lines: Sequence[bytes]) -> tuple[ImportSummary, list[int]]:
        """Import lines; return the summary and the numbers of the lines that were reported."""
        errors: list[int] = []
        with self.chat() as chat:
            return import_events(chat, lines, on_error=lambda number, _: errors.append(number)), errors

    def run_killed(self, lines: Sequence[bytes], chance: random.Random) -> None:
        """Import lines until the process is killed, if it comes to that call."""
        with self.chat() as chat:
            assert isinstance(chat.system.client, MortalClient)
            chat.system.client.calls_left = chance.randint(0, 3 * len(lines))
            chat.system.client.is_last_lost = chance.random() < 0.5
            try:
                import_events(chat, lines, on_error=lambda *_: None)
            except Killed:
                chat.system.client.calls_left = None

    def live(self, chance: random.Random) -> None:
        """Let one of the epochs go by."""
        epoch = chance.choice(self.epochs)
        with self.chat() as chat:
            if epoch in {"persist", "trim", "rebuild"}:
                store(chat)
            if epoch == "trim":
                trim(chat.system, keep_messages=0)
            if epoch in {"trim", "forget"}:
                for gid in GIDS:
                    keys = chat.system.client.space.group(gid)
                    chat.system.client.driver.delete(keys.idempotency_newer, keys.idempotency_older)
            if epoch == "rebuild":
                chat.system.client.driver.flushall()
                with self.chat() as again:
                    rebuild(again.system, yes=True)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    parameters: tuple[str, int] = request.param
    return parameters


@pytest.fixture
def chance(case: tuple[str, int]) -> random.Random:
    return random.Random(case[1])


@pytest.fixture
def stores(case: tuple[str, int], new_folder: Callable[[], Path], request: pytest.FixtureRequest) -> Stores:
    if case[0] == "valkey":
        url: str = request.getfixturevalue("valkey")
        return Stores(lambda: open_client(url), new_folder(), [*EPOCHS, "rebuild"])
    server = fakeredis.FakeServer()
    return Stores(lambda: fakeredis.FakeRedis(server=server), new_folder(), EPOCHS)


TURNS = ("message", "message", "message", "join", "leave", "leave", "back", "rename", "again", "ack", "ack", "bad")


def random_events(
    chance: random.Random, prefix: str = "", *, most: int = 30, turns: Sequence[str] = TURNS
) -> list[Event]:
    """Users who join, leave, are renamed, send, send the same again, and ack; also messages that are not there yet."""
    events: list[Event] = []
    sent: list[Event] = []
    gids = chance.choice([GIDS, GIDS[:1]])
    for number in range(chance.randint(2, most)):
        event: Event = {"gid": chance.choice(gids), "uid": chance.choice(UIDS)}
        client_msgid = f"{prefix}{number}"
        match turn := chance.choice(turns):
            case "message":
                event |= {"type": "message", "content": client_msgid, "client_msgid": client_msgid}
                sent.append(event)
            case "again" if sent:
                event = chance.choice(sent)
            case "ack" | "recall" if sent and chance.random() < 0.8:
                event |= {
                    "type": turn,
                    "gid": (said := chance.choice(sent))["gid"],
                    "client_msgid": said["client_msgid"],
                }
            case "ack" | "recall":
                event |= {"type": turn, "client_msgid": f"{prefix}{number + chance.randint(0, 9)}"}
            case "rename":
                event |= {"type": "rename", "new_uid": chance.choice(UIDS)}
            case "back":
                events.append(event | {"type": "leave"})
                event |= {"type": "join"}
            case "join" | "leave" as type_:
                event |= {"type": type_}
            case _:
                event |= {"type": "nonsense"}
        events.append(event)
    return events


def valid(events: Sequence[Event]) -> list[bool]:
    """Whether each event is valid: an ack must name a message before it."""
    sent: set[tuple[str, str]] = set()
    verdicts = []
    for event in events:
        if event["type"] == "message":
            sent.add((event["gid"], event["client_msgid"]))
        is_known = (event["gid"], event.get("client_msgid")) in sent
        verdicts.append(event["type"] != "nonsense" and (event["type"] not in {"ack", "recall"} or is_known))
    return verdicts


def split(events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """Return the events up to the last message that was not sent before, or recall of one, and those after it."""
    done: set[tuple[str, str]] = set()
    end = 0
    for i, event in enumerate(events):
        by = {"message": event["uid"], "recall": "recalled"}.get(event["type"])
        if by and (by, event["client_msgid"]) not in done:
            done.add((by, event["client_msgid"]))
            end = i + 1
    after = [event for event in events[end:] if event["type"] not in {"message", "recall"}]
    return list(events[:end]), after


def steps(events: Sequence[Event]) -> list[Event]:
    """Write each rename as the leave and the join that it is."""
    plain: list[Event] = []
    for event in events:
        if event["type"] == "rename":
            plain += [event | {"type": "leave"}, event | {"type": "join", "uid": event["new_uid"]}]
        else:
            plain.append(event)
    return plain


def final_memberships(events: Sequence[Event]) -> list[Event]:
    """Of each user, whether they are a member in the end, and then their acks."""
    last = {event["uid"]: event for event in events}
    members = [event | {"type": "join"} for event in last.values() if event["type"] != "leave"]
    acks = [event for event in events if event["type"] == "ack" and last[event["uid"]]["type"] != "leave"]
    return [event for event in last.values() if event["type"] == "leave"] + members + acks


def possible(events: Sequence[Event]) -> list[list[Event]]:
    """All that may have been applied. After the last message, an interrupted run may have come to any event."""
    before, after = split(events)
    after = steps(after)
    return [[*before, *after[:done], *final_memberships(after)] for done in range(len(after), -1, -1)]


def compare(chat: Chat, events: Sequence[Event]) -> None:
    """Compare each group with the model of what may have been applied."""
    applied = [event for event, is_valid in zip(events, valid(events), strict=True) if is_valid]
    assert {group.gid for group in chat.groups()} == {event["gid"] for event in applied}
    for gid in {event["gid"] for event in applied}:
        msgids = {gid: [tally.message.msgid for tally in chat.status(gid, limit=0)]}
        failures = []
        for candidate in possible([event for event in applied if event["gid"] == gid]):
            model = Model()
            try:
                replay(model, candidate, msgids)
                compare_group(chat, model, gid)
                compare_offsets(chat, model, gid)
                compare_names(chat, model, gid, model.groups[gid].messages)
            except (AssertionError, IndexError) as failure:
                failures.append(failure)
            else:
                break
        else:
            raise failures[0]


def state(chat: Chat) -> dict[str, Any]:
    """All that a user can see of each group."""
    return {
        group.gid: (
            [chat.message_status(group.gid, tally.message.msgid) for tally in chat.status(group.gid, limit=0)],
            list(chat.members(group.gid)),
        )
        for group in chat.groups()
    }


def test_killed_and_grown_import_equals_one_run_of_the_whole_file(stores: Stores, chance: random.Random) -> None:
    # Given runs of a file that grows, some of them killed
    events = random_events(chance, turns=[*TURNS, "recall"])
    length = 0
    for _ in range(chance.randint(0, 4)):
        length = chance.randint(length, len(events))
        if chance.random() < 0.7:
            stores.run_killed(lines(events[:length]), chance)
        else:
            stores.run(lines(events[:length]))
        stores.live(chance)
    # When the whole file is imported
    _, errors = stores.run(lines(events))
    # Then
    assert sorted(errors) == [number for number, is_valid in enumerate(valid(events), 1) if not is_valid]
    with stores.chat() as chat:
        compare(chat, events)
    # And again, which changes nothing
    stores.live(chance)
    with stores.chat() as chat:
        before = state(chat)
    summary, again = stores.run(lines(events))
    assert (summary.messages, summary.acks, sorted(again)) == (0, 0, sorted(errors))
    with stores.chat() as chat:
        assert state(chat) == before


def test_import_of_any_file_after_any_other_keeps_the_contract(stores: Stores, chance: random.Random) -> None:
    # Given files that share events, imported in turn, and what others do meanwhile
    files = [random_events(chance), random_events(chance, "b")]
    files += [changed(chance.choice(files), chance) for _ in range(2)]
    for _ in range(5):
        events = chance.choice(files)
        if chance.random() < 0.3:
            stores.run_killed(lines(events), chance)
            continue
        with stores.chat() as chat:
            meddle(chat, chance)
            before = state(chat)
        # When
        summary, _ = stores.run(lines(events))
        # Then
        with stores.chat() as chat:
            after = state(chat)
            new = new_messages(events, before)
            assert summary.messages == len(new)
            assert {gid: texts(after, gid) for gid in after} == {
                gid: texts(before, gid) + [e["content"] for e in new if e["gid"] == gid] for gid in after
            }
            for gid, memberships in said(events, new).items():
                uids = {member.uid for member in after.get(gid, ([], []))[1]}
                assert {uid: uid in uids for uid in memberships} == memberships
        stores.live(chance)


def test_same_file_again_moves_nobody_who_is_a_member_before_and_after(stores: Stores, chance: random.Random) -> None:
    # Given a file with a message in each of its groups, and what others did since
    events = random_events(chance)
    gids = {event["gid"] for event in events}
    first = [
        {"type": "message", "gid": gid, "uid": chance.choice(UIDS), "content": "first", "client_msgid": "first"}
        for gid in sorted(gids)
    ]
    stores.run(lines(first + events))
    for _ in range(3):
        stores.live(chance)
        with stores.chat() as chat:
            meddle(chat, chance)
            before = state(chat)
        # When
        stores.run(lines(first + events))
        # Then
        with stores.chat() as chat:
            after = state(chat)
        for gid in gids:
            members = {member.uid: member for member in after[gid][1]}
            assert texts(before, gid) == texts(after, gid)
            assert [m for m in before[gid][1] if m.uid in members] == [
                members[m.uid] for m in before[gid][1] if m.uid in members
            ]


def changed(events: Sequence[Event], chance: random.Random) -> list[Event]:
    """A file that was corrected, cut, or in which something was left out or put in."""
    edited = list(events)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(edited) + 1)
        if chance.random() < 0.5:
            edited[at : at + chance.randint(1, 3)] = []
        else:
            edited[at:at] = random_events(chance, f"c{chance.random()}", most=4)
    return edited


def meddle(chat: Chat, chance: random.Random) -> None:
    """Do what others may do between two runs."""
    for group in list(chat.groups()):
        for _ in range(chance.choice([0, 0, 1, 3])):
            uid = chance.choice(UIDS)
            if chance.random() < 0.5:
                chat.remove_members(group.gid, [uid])
            else:
                chat.add_members(group.gid, [uid])
                if chance.random() < 0.5:
                    chat.send(group.gid, "by others", sender_uid=uid)


def new_messages(events: Sequence[Event], before: dict[str, Any]) -> list[Event]:
    """The messages that the import has to store, by the contract: the first of each gid, uid and client_msgid."""
    stored = {
        (gid, status.message.sender_uid, status.message.client_msgid)
        for gid, (statuses, _) in before.items()
        for status in statuses
    }
    new = []
    for event in events:
        if event["type"] == "message":
            key = event["gid"], event["uid"], event["client_msgid"]
            if key not in stored:
                new.append(event)
            stored.add(key)
    return new


def said(events: Sequence[Event], new: Sequence[Event]) -> dict[str, dict[str, bool]]:
    """Whether each user is a member in the end as the file says. A stored message says nothing of its sender."""
    memberships: dict[str, dict[str, bool]] = {}
    mentioned: list[Event] = []
    for event, is_valid in zip(events, valid(events), strict=True):
        users = memberships.setdefault(event["gid"], {})
        uid = event["uid"]
        if event["type"] == "ack" and not is_valid:
            users.pop(uid, None)  # valid if another file has the message
        elif event in mentioned:
            continue  # the same message again does nothing
        elif event["type"] == "message" and event not in new:
            if users.get(uid) is False:
                del users[uid]
            mentioned.append(event)
        elif event["type"] == "message":
            users[uid] = True
            mentioned.append(event)
        elif event["type"] in {"join", "ack"}:
            users[uid] = True
        elif event["type"] == "leave":
            users[uid] = False
        elif event["type"] == "rename":
            users[uid] = False
            users[event["new_uid"]] = True
    return {gid: users for gid, users in memberships.items() if users}


def texts(groups: dict[str, Any], gid: str) -> list[str]:
    return [status.message.content for status in groups.get(gid, ([], []))[0]]
