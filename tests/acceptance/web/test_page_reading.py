"""What people see of each other's reading: a tick changes when, and only when, somebody has really seen a message."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import WebSocketRoute

from tests.helpers.deadline import wait_until
from tests.helpers.page_stack import PageStack
from tests.helpers.tabs import People

Numbered = Callable[[int, int], list[str]]


def test_a_tick_changes_when_the_other_one_opens_the_conversation(people: People, stack: PageStack) -> None:
    # Given a message that has arrived at Bob's, who looks at the list
    ann, bob = people.online(people.ann).open(people.gid), people.online(people.bob)
    ann.write("hello")
    bob.wait_for_unread(people.gid, 1)
    ann.wait_for_tick("hello", "delivered 0/1")
    assert stack.offset(people.gid, people.bob) is None

    # When he opens the conversation
    bob.open(people.gid)

    # Then Ann sees it, without doing anything, and his count is gone
    ann.wait_for_tick("hello", "all 1/1")
    bob.wait_for_unread(people.gid, 0)
    assert bob.rows() == [["hello", ""]]

    # And what she has seen does not come again
    wait_until(lambda: stack.chat.receipts(people.ann) == [])


def test_what_has_arrived_and_what_is_marked_unread(people: People, stack: PageStack) -> None:
    # Given messages that Bob's browser has, and that nobody has seen
    ann = people.online(people.ann).open(people.gid)
    ann.write("first", "second")
    ann.wait_for_tick("second", "sent 0/1")
    bob = people.online(people.bob)
    bob.wait_for_unread(people.gid, 2)
    ann.wait_for_tick("first", "delivered 0/1")
    assert ann.page.get_by_role("button", name="Delivered. Read by 0 of 1").count() == 2
    assert stack.offset(people.gid, people.bob) is None

    # When he reads them, and marks the second one unread
    bob.open(people.gid)
    ann.wait_for_tick("second", "all 1/1")
    row = bob.page.locator(".row", has_text="second")
    row.hover()
    row.get_by_role("button", name="Mark unread from here").click()

    # Then it is unread for him, on another device, too, and read for her
    bob.wait_for_unread(people.gid, 1)
    other = people.online(people.bob)
    other.wait_for_unread(people.gid, 1)
    assert [each.unread for each in stack.chat.unread(people.bob) if each.gid == people.gid] == [1]
    assert ann.tick("second") == "all 1/1"

    # Until he sees it again
    bob.open(people.gid)
    bob.wait_for_unread(people.gid, 0)
    wait_until(lambda: [each.unread for each in stack.chat.unread(people.bob) if each.gid == people.gid] == [0])


def test_what_is_shown_while_the_server_answers_stays_read(people: People, stack: PageStack) -> None:
    # Given Bob, who marks a message unread on another device, and a slow answer to his tab, which asks from where on
    asked: list[dict[str, Any]] = []
    sockets: list[WebSocketRoute] = []
    held: list[str] = []

    def route(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def ask(text: str | bytes) -> None:
            asked.append(json.loads(text))
            server.send(text)

        def answer(text: str | bytes) -> None:
            number = json.loads(text).get("id")
            is_slow = any(each.get("id") == number and each["params"].get("first_unread") for each in asked)
            if is_slow and not held:
                held.append(str(text))
            else:
                socket.send(text)

        socket.on_message(ask)
        server.on_message(answer)
        sockets.append(socket)

    bob = people.tab(people.bob)
    bob.page.route_web_socket("**/ws", route)
    bob.load(stack.link(people.bob)).open(people.gid)
    msgids = people.say(people.ann, "first", "second", "third")
    bob.wait_until(lambda: stack.offset(people.gid, people.bob) == msgids[-1])
    stack.chat.mark_unread(people.bob, people.gid, msgids[1])
    bob.wait_until(lambda: held != [])

    # When he sees another message before the answer
    (newest,) = people.say(people.ann, "fourth")
    asked.clear()
    bob.wait_until(lambda: any(each["method"] == "unread" for each in asked))  # he is told of his own ack, too
    bob.wait_for_unread(people.gid, 0)
    assert stack.offset(people.gid, people.bob) == newest
    asked.clear()
    sockets[0].send(held[0])

    # Then nothing is unread, on any device
    bob.wait_until(lambda: any(each["method"] == "unread" for each in asked))
    bob.wait_for_unread(people.gid, 0)
    assert [each.unread for each in stack.chat.unread(people.bob) if each.gid == people.gid] == [0]


def test_a_tick_says_how_many_of_a_group_have_read_and_who(people: People, stack: PageStack) -> None:
    stack.chat.add_members(people.gid, [people.cat])
    ann = people.online(people.ann).open(people.gid)
    ann.write("who has read this?")
    ann.wait_for_tick("who has read this?", "sent 0/2")

    # When one of two reads it
    people.online(people.bob).open(people.gid)
    ann.wait_for_tick("who has read this?", "some 1/2")

    # Then the names are behind the tick
    ann.page.get_by_role("button", name="Read by 1 of 2").click()
    info = ann.page.get_by_role("dialog", name="Who has read it")
    wait_until(lambda: info.locator("h3").all_text_contents() == ["Read by 1", "Not yet 1"])
    assert info.locator("li .one-line").all_text_contents() == [people.bob, people.cat]

    # And they change while one looks at them
    people.online(people.cat).open(people.gid)
    wait_until(lambda: info.locator("h3").all_text_contents() == ["Read by 2"])
    assert ann.tick("who has read this?") == "all 2/2"


def test_only_what_was_in_view_counts(people: People, stack: PageStack, numbered: Numbered) -> None:
    # Given more unread messages than fit on a screen
    ann, bob = people.online(people.ann).open(people.gid), people.online(people.bob)
    people.say(people.ann, *numbered(1, 60))
    bob.wait_for_unread(people.gid, 60)

    # When Bob opens the conversation, then the first ones count
    bob.open(people.gid)
    ann.wait_for_tick("message 1", "all 1/1")
    wait_until(lambda: 30 < bob.unread(people.gid) < 60)
    ann.scroll_to_end()  # many messages at once do not carry her away
    ann.wait_for_tick("message 60", "delivered 0/1")
    assert bob.page.locator(".divider:visible").count() == 1
    assert bob.page.get_by_role("button", name=f"{bob.unread(people.gid)} new messages", exact=True).is_visible()

    # And the others only when he scrolls
    bob.scroll_to_end()
    ann.wait_for_tick("message 60", "all 1/1")
    bob.wait_for_unread(people.gid, 0)
    assert not bob.page.locator("#jump").is_visible()


def test_a_hidden_tab_reads_nothing(people: People, stack: PageStack) -> None:
    # Given an open conversation, in a tab that is behind another
    ann, bob = people.online(people.ann).open(people.gid), people.online(people.bob).open(people.gid)
    ann.write("first")
    ann.wait_for_tick("first", "all 1/1")
    bob.set_hidden(True)

    # When a message arrives there
    ann.write("second")
    bob.wait_for_texts("first", "second")
    bob.wait_for_unread(people.gid, 1)

    # Then it is unread, until the tab is looked at
    ann.write("third")
    bob.wait_for_unread(people.gid, 2)
    ann.wait_for_tick("second", "delivered 0/1")
    assert stack.chat.member(people.gid, people.bob).unread == 2
    bob.set_hidden(False)
    ann.wait_for_tick("third", "all 1/1")
    bob.wait_for_unread(people.gid, 0)


def test_a_message_does_not_move_what_one_reads(people: People, numbered: Numbered) -> None:
    # Given somebody who reads something older
    people.say(people.ann, *numbered(1, 60))
    bob = people.online(people.bob).open(people.gid)
    bob.scroll_to_end()
    bob.wait_for_unread(people.gid, 0)
    bob.scroll("top")
    before = bob.log("log => log.scrollTop")

    # When a message comes
    people.say(people.ann, "news")
    wait_until(lambda: bob.texts()[-1:] == ["news"])

    # Then nothing moves, a button tells of it, and it is unread until the button was used
    button = bob.page.get_by_role("button", name="1 new message", exact=True)
    button.wait_for()
    assert bob.log("log => log.scrollTop") == before
    assert bob.unread(people.gid) == 1
    button.click()
    bob.wait_for_unread(people.gid, 0)
    assert bob.is_at_end()


def test_scrolling_back_shows_each_of_300_messages_once_and_in_order(people: People, numbered: Numbered) -> None:
    # Given a long conversation that this browser has never seen, with a recalled message
    msgids = people.say(people.ann, *numbered(1, 310))
    bob = people.online(people.bob).open(people.gid)
    bob.page.locator("#jump").click()
    wait_until(lambda: bob.texts()[-1:] == ["message 310"])

    # When one scrolls back, page by page, what is in view stays where it is
    seen = bob.page.get_by_text("message 300", exact=True)
    seen.scroll_into_view_if_needed()
    bob.scroll_to_beginning()

    # Then each is there once, in order
    assert bob.texts() == numbered(1, 310)
    assert len(set(bob.page.locator("#rows .row").evaluate_all("rows => rows.map(r => r.dataset.msgid)"))) == len(
        msgids
    )


def test_a_page_that_is_loaded_moves_nothing(people: People, numbered: Numbered) -> None:
    people.say(people.ann, *numbered(1, 200))
    bob = people.online(people.bob).open(people.gid)
    bob.page.locator("#jump").click()
    wait_until(lambda: bob.texts()[-1:] == ["message 200"])

    # When pages come while one looks at the topmost message
    for _ in range(3):
        first = bob.texts()[0]
        bob.scroll("top")
        wait_until(lambda first=first: bob.texts()[0] != first)  # type: ignore[misc]

        # Then it is still in view, where it was
        top = bob.page.get_by_text(first, exact=True).evaluate("row => row.getBoundingClientRect().top")
        log = bob.log("log => log.getBoundingClientRect()")
        assert log["top"] <= top < log["bottom"]


def test_a_recalled_message_is_blank_and_not_unread(people: People) -> None:
    # Given two unread messages
    ann, bob = people.online(people.ann).open(people.gid), people.online(people.bob)
    ann.write("a mistake", "not a mistake")
    bob.wait_for_unread(people.gid, 2)

    # When Ann recalls one, after she was asked again
    ann.wait_for_tick("a mistake", "delivered 0/1")
    ann.page.locator(".tick:visible").first.click()
    ann.page.get_by_role("button", name="Recall this message").click()
    ann.page.get_by_role("button", name="Recall it for everybody?").click()

    # Then its text is gone, for both, and it does not count
    ann.wait_for_texts("Message recalled", "not a mistake")
    bob.wait_for_unread(people.gid, 1)
    bob.open(people.gid)
    bob.wait_for_texts("Message recalled", "not a mistake")
    assert ann.tick("Message recalled") == ""


def test_recalls_that_were_missed_are_seen_afterwards(people: People, stack: PageStack) -> None:
    # Given a message that Bob has read, in the database of his browser
    [msgid, _] = people.say(people.ann, "a secret", "something else")
    bob = people.online(people.bob).open(people.gid)
    bob.wait_for_texts("a secret", "something else")

    # When it is recalled while he is offline
    bob.set_offline(True)
    stack.chat.recall(people.gid, msgid, by=people.ann)
    bob.set_offline(False)

    # Then it is gone there, too
    bob.wait_for_texts("Message recalled", "something else")
    assert "a secret" not in (bob.page.text_content("body") or "")


def test_reading_on_another_device_is_seen_when_one_comes_back(people: People, stack: PageStack) -> None:
    bob = people.online(people.bob)
    people.say(people.ann, "one", "two")
    bob.wait_for_unread(people.gid, 2)

    # When Bob reads on his phone, and then looks at this tab
    stack.chat.ack(people.bob, people.gid)
    bob.set_hidden(True)
    bob.set_hidden(False)

    # Then nothing is unread here
    bob.wait_for_unread(people.gid, 0)


@pytest.mark.parametrize("is_open", [True, False])
def test_joins_and_leaves_are_seen_at_once(people: People, stack: PageStack, is_open: bool) -> None:
    # Given a user who is added to a group, and then sees it
    cat = people.online(people.cat)
    assert cat.page.get_by_text("No conversations yet").is_visible()
    stack.chat.add_members(people.gid, [people.cat])
    people.say(people.ann, "welcome")
    cat.wait_for_unread(people.gid, 1)
    if is_open:
        cat.open(people.gid).wait_for_texts("welcome")

    # When they are removed, then it is gone, and nothing can be written there
    stack.chat.remove_members(people.gid, [people.cat])
    cat.group(people.gid).wait_for(state="detached")
    assert cat.page.get_by_text("You are no longer in this group").is_visible() == is_open
    assert not cat.page.locator("#composer").is_visible()


def test_a_mark_that_was_set_elsewhere_is_seen_from_the_beginning(people: People, stack: PageStack) -> None:
    msgids = people.say(people.ann, *"abcde")
    stack.chat.ack(people.bob, people.gid)
    stack.chat.mark_unread(people.bob, people.gid, msgids[1])

    bob = people.online(people.bob)

    bob.wait_for_unread(people.gid, 4)
    bob.page.wait_for_timeout(2000)  # and it stays
    assert bob.unread(people.gid) == 4
