"""The example of imcore/gateway/README.md, run as it is."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from imcore import Chat
from imcore.gateway.fanout import Session
from imcore.settings import Settings
from imcore.workers.receipts import ReceiptsWorker
from tests.helpers.deadline import wait_until
from tests.helpers.devices import until_all_have_happened
from tests.helpers.documents import Document
from tests.helpers.gateway_events import FIRST, LAST, one_of_each

DOCUMENT = Document("imcore/gateway/README.md")


class Socket:
    """What a client was sent; broken, it takes nothing more."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.is_broken = False
        self.closed = ""

    def close(self, why: str) -> None:
        self.closed = why

    def send(self, said: dict[str, Any]) -> None:
        if self.is_broken:
            raise ConnectionResetError
        self.sent.append(said)

    @property
    def texts(self) -> list[str]:
        return [said["content"] for said in self.sent if "content" in said]


def example() -> dict[str, Any]:
    [code] = DOCUMENT.blocks_in("python")
    assert len(code.lines) <= 42
    names: dict[str, Any] = {}
    exec(compile(code.text, DOCUMENT.name, "exec"), names)
    return names


def test_people_come_talk_and_go(chat: Chat) -> None:
    # Given
    chat.create_group("team", ["ann", "bob", "cy"])
    ann, bob, cy = Socket(), Socket(), Socket()
    news: queue.Queue[tuple[Socket, str | None]] = queue.Queue()
    readers: list[str] = []

    def story() -> Iterator[Callable[[], object]]:
        """The conditions to wait for, each before the next event."""
        for socket, uid in ((ann, "ann"), (bob, "bob"), (cy, "cy")):
            news.put((socket, uid))
        yield lambda: chat.online(["ann", "bob", "cy"]) == {"ann", "bob", "cy"}
        first = chat.send("team", "hello", sender_uid="ann")
        yield lambda: bob.texts == cy.texts == ann.texts == ["hello"]
        yield lambda: chat.tally("team", first.msgid).read == 2
        cy.is_broken = True
        second = chat.send("team", "still there?", sender_uid="ann")
        yield lambda: chat.online(["bob", "cy"]) == {"bob"}
        news.put((bob, None))
        news.put((bob, None))
        yield lambda: chat.online(["bob"]) == set()
        readers.extend(reader.uid for reader in chat.message_status("team", second.msgid).read_by)
        assert [message.content for message in chat.pull("cy")] == ["still there?"]
        comes_back = Socket()
        news.put((comes_back, "cy"))
        yield lambda: comes_back.texts == ["still there?"]

    # When
    example()["serve"](chat, news, until_all_have_happened(story()))

    # Then who was there until the end has read it, and all have gone
    assert readers == ["bob"]
    assert chat.online(["ann", "bob", "cy"]) == set()
    assert chat.pull("cy") == []


def test_an_invalid_user_is_sent_away_alone(chat: Chat) -> None:
    chat.create_group("team", ["ann"])
    ann, nobody = Socket(), Socket()
    news: queue.Queue[tuple[Socket, str | None]] = queue.Queue()
    news.put((nobody, ""))
    news.put((ann, "ann"))
    chat.send("team", "hello", sender_uid="ann")
    example()["serve"](chat, news, lambda: chat.online(["ann"]) == {"ann"})
    assert nobody.closed.startswith("uid is empty")


def test_receipts_reach_the_sender(chat: Chat) -> None:
    chat.create_group("team", ["ann", "bob"])
    ann = Socket()
    news: queue.Queue[tuple[Socket, str | None]] = queue.Queue()
    news.put((ann, "ann"))
    message = chat.send("team", "hello", sender_uid="ann")
    chat.ack("bob", "team")
    worker = ReceiptsWorker(chat.system.client, chat.system.database, chat.system.settings)
    wait_until(worker.step)
    worker.close()

    example()["serve"](chat, news, lambda: {"read": [("team", message.msgid, 1)]} in ann.sent)


def test_each_event_can_be_told() -> None:
    as_json = example()["as_json"]
    message = {"gid": "team", "msgid": FIRST, "sender_uid": "ann", "content": "hello", "recalls": None}
    assert [as_json(event) for event in one_of_each([Session("ann")])] == [
        message,
        {"read": [("team", FIRST, 1)]},
        {"PositionMoved": ("team", LAST)},
        {"PositionMoved": ("team", None)},
        {"Gap": ("team", FIRST, LAST)},
        {"Rewound": ("team", FIRST)},
        {"Rewound": ("team", None)},
        {"Joined": ("team",)},
        {"Left": ("team",)},
        {"Ended": ()},
    ]


def test_the_socket_of_an_erased_user_is_closed(chat: Chat, settings: Settings) -> None:
    chat.system.database.upgrade()
    quick = replace(settings, online_ms=2000, heartbeat_ms=100)
    chat.create_group("team", ["ann", "bob"])
    ann, bob = Socket(), Socket()
    news: queue.Queue[tuple[Socket, str | None]] = queue.Queue()
    news.put((ann, "ann"))
    news.put((bob, "bob"))

    def story() -> Iterator[Callable[[], object]]:
        yield lambda: chat.online(["ann", "bob"]) == {"ann", "bob"}
        chat.erase_user("ann")
        yield lambda: ann.closed
        news.put((ann, None))
        chat.send("team", "after", sender_uid="bob")
        yield lambda: bob.texts == ["after"]

    with Chat.connect(settings=quick) as live:
        example()["serve"](live, news, until_all_have_happened(story()))
    assert ann.texts == []
    assert not bob.closed
