"""The page without a network: one goes on writing, and each message goes out once; what was missed comes once."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import WebSocketRoute, expect

from tests.helpers.deadline import wait_until
from tests.helpers.page_stack import PageStack
from tests.helpers.tabs import People

Numbered = Callable[[int, int], list[str]]


def test_what_was_missed_comes_once_and_in_order(people: People, numbered: Numbered) -> None:
    # Given Bob, who loses the network in the middle of a conversation
    ann, bob = people.online(people.ann).open(people.gid), people.online(people.bob).open(people.gid)
    ann.write("before")
    bob.wait_for_texts("before")
    bob.set_offline(True)

    # When Ann writes meanwhile
    ann.write(*numbered(1, 5))
    wait_until(lambda: all(tick == "sent 0/1" for _, tick in ann.rows()[1:]))

    # Then all of it is there when he comes back, and counts as read
    bob.set_offline(False)
    bob.wait_for_texts("before", *numbered(1, 5))
    ann.wait_for_tick("message 5", "all 1/1")


@pytest.mark.parametrize("is_open", [True, False])
def test_a_gap_is_filled_where_one_looks(people: People, numbered: Numbered, is_open: bool) -> None:
    # Given somebody who misses far more than is handed over at once
    people.say(people.ann, *numbered(1, 30))
    bob = people.online(people.bob)
    if is_open:
        bob.open(people.gid)
        bob.scroll_to_end()
        bob.wait_for_unread(people.gid, 0)
    bob.set_offline(True)
    people.say(people.ann, *numbered(31, 280))
    bob.set_offline(False)
    bob.wait_for_unread(people.gid, 250 if is_open else 280)

    # When they go to the newest message, and scroll back
    if not is_open:
        bob.open(people.gid)
    bob.page.locator("#jump").click()
    wait_until(lambda: bob.texts()[-1:] == ["message 280"])
    assert bob.texts() == numbered(280 - len(bob.texts()) + 1, 280)
    bob.scroll_to_beginning()

    # Then none is missing, none is there twice
    assert bob.texts() == numbered(1, 280)
    bob.wait_for_unread(people.gid, 0)


def test_a_gap_is_filled_downwards_too(people: People, numbered: Numbered) -> None:
    people.say(people.ann, *numbered(1, 240))
    bob = people.online(people.bob).open(people.gid)

    # When one reads on from the first unread message
    bob.scroll_to_end()

    # Then all come, in order
    assert bob.texts() == numbered(1, 240)
    bob.wait_for_unread(people.gid, 0)


def test_a_hole_is_named_while_it_cannot_be_filled(people: People, numbered: Numbered) -> None:
    # Given a browser that has only the newest messages
    people.say(people.ann, *numbered(1, 240))
    bob = people.online(people.bob).open(people.gid)
    bob.page.locator("#jump").click()
    wait_until(lambda: bob.texts()[-1:] == ["message 240"])
    bob.set_offline(True)

    # When one scrolls back without a network
    def is_named() -> bool:
        bob.scroll("top")
        return "There are more messages here" in (bob.page.locator("#older").text_content() or "")

    wait_until(is_named)
    assert bob.texts() == numbered(240 - len(bob.texts()) + 1, 240)

    # Then the rest comes with the network
    bob.set_offline(False)
    bob.scroll_to_beginning()
    assert bob.texts() == numbered(1, 240)


def test_what_was_written_offline_goes_out_once(people: People, stack: PageStack, numbered: Numbered) -> None:
    # Given Ann, who goes on writing without a network
    ann = people.online(people.ann).open(people.gid)
    ann.set_offline(True)
    ann.write(*numbered(1, 5))
    wait_until(lambda: ann.rows() == [[text, "waiting"] for text in numbered(1, 5)])
    assert ann.page.get_by_text("Offline: your messages wait").is_visible()
    assert stack.stored(people.gid, people.bob) == []

    # When the network is back
    ann.set_offline(False)

    # Then each went out once, in order
    wait_until(lambda: ann.rows() == [[text, "sent 0/1"] for text in numbered(1, 5)])
    assert stack.stored(people.gid, people.bob) == numbered(1, 5)


def test_the_outbox_outlives_the_tab(people: People, stack: PageStack) -> None:
    # Given messages that wait when the tab is closed
    ann = people.online(people.ann).open(people.gid)
    ann.set_offline(True)
    ann.write("first", "second")
    wait_until(lambda: [tick for _, tick in ann.rows()] == ["waiting", "waiting"])
    ann.page.close()
    ann.context.set_offline(False)

    # When the page is opened again
    again = people.online(people.ann).open(people.gid)

    # Then they go out
    wait_until(lambda: again.rows() == [["first", "sent 0/1"], ["second", "sent 0/1"]])
    assert stack.stored(people.gid, people.bob) == ["first", "second"]


def test_a_message_whose_answer_was_lost_goes_out_once(people: People, stack: PageStack) -> None:
    # Given a network that breaks after a message has reached the server, and before the answer is here
    is_broken: list[bool] = []

    def route(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def forward(text: str | bytes) -> None:
            if '"recipients"' in str(text) and not is_broken:
                is_broken.append(True)
                socket.close()
            else:
                socket.send(text)

        server.on_message(forward)

    ann = people.tab(people.ann)
    ann.page.route_web_socket("**/ws", route)
    ann.load(stack.link(people.ann)).open(people.gid)

    # When one is written
    ann.write("once")

    # Then it is sent again, and stored once
    wait_until(lambda: ann.rows() == [["once", "sent 0/1"]])
    assert is_broken
    assert stack.stored(people.gid, people.bob) == ["once"]


def test_a_network_that_goes_after_it_was_said_to_be_gone_is_noticed(people: People, stack: PageStack) -> None:
    # Given a browser that tells of it while the network still carries a question and its answer
    heard: list[str] = []
    is_gone: list[bool] = []

    def route(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def forward(text: str | bytes) -> None:
            if not is_gone:
                heard.append(str(text))
                socket.send(text)

        server.on_message(forward)

    ann = people.tab(people.ann)
    ann.page.route_web_socket("**/ws", route)
    ann.load(stack.link(people.ann))
    heard.clear()
    ann.page.evaluate("Object.defineProperty(navigator, 'onLine', {value: false}), dispatchEvent(new Event('offline'))")
    ann.wait_until(lambda: heard != [])

    # When it is gone, then the page says so
    is_gone.append(True)
    ann.wait_for_state("offline")


def test_a_refused_message_says_why_and_can_be_deleted(people: People, stack: PageStack) -> None:
    # Given a message that the server never takes
    ann = people.online(people.ann).open(people.gid)
    ann.write("x" * 70_000, "and another one")

    # Then it says why, and holds up no other
    why = ann.page.get_by_text("Not sent: content has 70000 bytes")
    why.wait_for()
    ann.wait_for_tick("and another one", "sent 0/1")
    assert stack.stored(people.gid, people.bob) == ["and another one"]

    # When one tries again, it is refused again
    ann.page.get_by_role("button", name="Try again").click()
    why.wait_for()

    # And it can be deleted
    ann.page.get_by_role("button", name="Delete").click()
    wait_until(lambda: ann.texts() == ["and another one"])


def test_two_tabs_of_a_user_are_one_outbox(people: People, stack: PageStack, numbered: Numbered) -> None:
    # Given two tabs of Ann without a network
    sent: list[str] = []
    one, other = people.tab(people.ann), people.tab(people.ann)
    for tab in (one, other):
        tab.note_sent("send", sent)
        tab.load(stack.link(people.ann)).open(people.gid)
    one.set_offline(True)
    other.wait_for_state("offline")

    # When she writes in one, in the other, and in the first again
    for number in range(1, 7):
        (one if number % 3 else other).write(f"message {number}")
        wait_until(lambda number=number: one.texts() == other.texts() == numbered(1, number))  # type: ignore[misc]
    one.set_offline(False)

    # Then all go out once, in order, and both tabs show it
    expected = [[text, "sent 0/1"] for text in numbered(1, 6)]
    wait_until(lambda: one.rows() == other.rows() == expected)
    assert len(sent) == 6
    assert stack.stored(people.gid, people.bob) == numbered(1, 6)


def test_two_tabs_of_a_user_have_read_the_same(people: People) -> None:
    one, other = people.online(people.bob), people.online(people.bob)
    people.say(people.ann, "hello")
    for tab in (one, other):
        tab.wait_for_unread(people.gid, 1)

    one.open(people.gid)

    for tab in (one, other):
        tab.wait_for_unread(people.gid, 0)


def test_what_was_seen_without_a_network_is_acked_afterwards(people: People, numbered: Numbered) -> None:
    # Given messages that have come, and a conversation that is opened without a network
    ann, bob = people.online(people.ann).open(people.gid), people.online(people.bob)
    ann.write("hello")
    bob.wait_for_unread(people.gid, 1)
    ann.wait_for_tick("hello", "delivered 0/1")
    bob.set_offline(True)
    bob.open(people.gid).wait_for_texts("hello")
    bob.wait_for_unread(people.gid, 0)
    assert ann.tick("hello") == "delivered 0/1"

    # When the network is back, then the sender hears of it
    bob.set_offline(False)
    ann.wait_for_tick("hello", "all 1/1")


def test_a_conversation_that_was_never_here_says_so(people: People) -> None:
    # Given a conversation that this browser has not seen, and no network
    bob = people.online(people.bob)
    bob.set_offline(True)
    people.say(people.ann, "hello")

    # When one opens it, then it does not say that there is nothing
    bob.open(people.gid)
    expect(bob.page.locator("#older")).to_have_text(
        "There are more messages here. They come when you are online again."
    )
    bob.set_offline(False)
    bob.wait_for_texts("hello")


def test_a_network_that_says_nothing_is_left(people: People, stack: PageStack) -> None:
    # Given a network that lets nothing through any more, and closes nothing
    is_dead: list[bool] = []

    def route(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        server.on_message(lambda text: None if len(is_dead) == 1 else socket.send(text))

    ann = people.tab(people.ann)
    ann.page.clock.install()
    ann.page.route_web_socket("**/ws", route)
    ann.load(stack.link(people.ann)).open(people.gid)
    is_dead.append(True)

    # When it has been silent for long, then the page sees it
    ann.page.clock.run_for(60_000)
    ann.wait_for_state("offline")
    ann.write("is anybody there?")

    # And goes on over another connection
    is_dead.append(False)
    ann.page.clock.run_for(30_000)
    ann.wait_for_state()
    ann.wait_for_tick("is anybody there?", "sent 0/1")
    assert stack.stored(people.gid, people.bob) == ["is anybody there?"]


def test_a_server_with_other_data_does_not_mix_with_what_was_kept(people: People, stack: PageStack) -> None:
    # Given a browser that has messages of a server
    sockets: list[WebSocketRoute] = []

    def route(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        number = len(sockets)
        sockets.append(socket)

        def forward(text: str | bytes) -> None:
            if number == 0:
                text = str(text).replace("said", "said on another server")
            else:
                text = re.sub('"dataset":"[^"]*"', '"dataset":"another one"', str(text))
            socket.send(text)

        server.on_message(forward)

    people.say(people.ann, "said 1", "said 2")
    bob = people.tab(people.bob)
    bob.page.route_web_socket("**/ws", route)
    bob.load(stack.link(people.bob)).open(people.gid)
    bob.wait_for_texts("said on another server 1", "said on another server 2")

    # When there is another server at the same address
    sockets[0].close()

    # Then only its messages are shown
    bob.wait_for_texts("said 1", "said 2")
    bob.page.reload()
    bob.wait_for_texts("said 1", "said 2")


def test_the_page_goes_on_when_the_server_was_killed(people: People, stack: PageStack, numbered: Numbered) -> None:
    ann, bob = people.online(people.ann).open(people.gid), people.online(people.bob).open(people.gid)
    for round_number in range(3):
        # Given that the server is killed while Ann writes
        first = 10 * round_number + 1
        ann.write(*numbered(first, first + 4))
        stack.gateway.kill()
        for tab in (ann, bob):
            tab.wait_for_state("offline")
        ann.write(*numbered(first + 5, first + 9))

        # When it runs again
        stack.restart_gateway()

        # Then both go on by themselves: all is there, once, in order, and read
        expected = numbered(1, first + 9)
        bob.wait_for_texts(*expected)
        bob.scroll_to_end()
        wait_until(lambda expected=expected: ann.rows() == [[text, "all 1/1"] for text in expected])  # type: ignore[misc]
        assert stack.stored(people.gid, people.bob) == expected
