"""A page forgets what no server has, and sends its own messages again."""

from tests.helpers.deadline import wait_until
from tests.helpers.lost_messages import after, process, push, restart
from tests.helpers.page_stack import PageStack
from tests.helpers.tabs import People


def test_a_page_has_what_the_server_has(people: People, stack: PageStack) -> None:
    # Given two tabs that show what a server has pushed and lost: also a message of their own
    people.say(people.ann, "first")
    bob, other = people.online(people.bob), people.online(people.bob)
    for tab in (bob, other):
        tab.open(people.gid).wait_for_texts("first")
    [first] = stack.chat.history(people.ann, people.gid).messages
    lost = after(first, "lost", by_ms=600_000)
    own = after(lost, "my own", sender_uid=people.bob, client_msgid="c-1")
    for message in (lost, own):
        push(stack.chat, message, process(stack.chat))
    for tab in (bob, other):
        tab.wait_for_texts("first", "lost", "my own")

    # When another server has the group
    restart(stack.chat)
    people.say(people.ann, "second")

    # Then both show what that one has
    wait_until(lambda: stack.stored(people.gid, people.bob) == ["first", "second", "my own"])
    for tab in (bob, other):
        wait_until(lambda tab=tab: tab.texts() == ["first", "second", "my own"])  # type: ignore[misc]
    wait_until(lambda: bob.unread(people.gid) == 0)
    bob.write("last")
    other.wait_for_texts("first", "second", "my own", "last")
