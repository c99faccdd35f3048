"""What a page shows of erased users, and what a browser keeps of them."""

from tests.helpers.deadline import wait_until
from tests.helpers.page_stack import PageStack
from tests.helpers.tabs import People, Tab

_EVERYTHING = """async () => {
    const all = [];
    for (const { name } of await indexedDB.databases()) {
        const database = await new Promise((resolve) => {
            const request = indexedDB.open(name);
            request.onsuccess = () => resolve(request.result);
        });
        for (const store of database.objectStoreNames)
            all.push(await new Promise((resolve) => {
                const request = database.transaction(store).objectStore(store).getAll();
                request.onsuccess = () => resolve(request.result);
            }));
        database.close();
    }
    return JSON.stringify(all);
}"""


def kept(tab: Tab) -> str:
    """Everything in the databases of the page."""
    text: str = tab.page.evaluate(_EVERYTHING)
    return text


def shown(tab: Tab) -> str:
    return tab.page.text_content("body") or ""


def test_a_browser_forgets_erased_users_when_it_comes_back(people: People, stack: PageStack) -> None:
    # Given what Ann wrote, in a group and to Bob, in two tabs of Bob's browser
    people.say(people.ann, "a secret")
    people.say(people.bob, "what Bob said")
    direct = stack.chat.send_direct(people.bob, "another secret", sender_uid=people.ann).gid
    bob, other = people.online(people.bob), people.online(people.bob)
    for tab in (bob, other):
        tab.open(people.gid).wait_for_texts("a secret", "what Bob said")
        tab.group(direct).wait_for()
    wait_until(lambda: "another secret" in kept(bob))

    # When she is erased while he is offline
    bob.set_offline(True)
    other.wait_for_state("offline")
    stack.chat.erase_user(people.ann)
    bob.set_offline(False)
    other.wait_for_state("online")

    # Then he sees that somebody has said something, and nothing has the name or a text
    for tab in (bob, other):
        tab.wait_for_texts("Message deleted", "what Bob said")
        wait_until(lambda tab=tab: tab.page.locator("#groups button", has_text="Deleted user").is_visible())  # type: ignore[misc]
        wait_until(lambda tab=tab: people.ann not in shown(tab) and "secret" not in shown(tab))  # type: ignore[misc]
    wait_until(lambda: people.ann not in kept(bob) and "secret" not in kept(bob))

    # And all goes on
    bob.write("still here")
    other.wait_for_texts("Message deleted", "what Bob said", "still here")


def test_a_browser_keeps_nothing_of_a_group_that_its_user_has_left(people: People, stack: PageStack) -> None:
    people.say(people.ann, "a secret")
    bob = people.online(people.bob).open(people.gid)
    bob.wait_for_texts("a secret")

    stack.chat.remove_members(people.gid, [people.bob])

    bob.page.get_by_text("You are no longer in this group").wait_for()
    wait_until(lambda: "secret" not in kept(bob))


def test_what_was_read_stays_read_where_the_other_was_erased(people: People, stack: PageStack) -> None:
    # Given a chat of two that Bob has read, in an open page
    direct = [stack.chat.send_direct(people.bob, f"secret {n}", sender_uid=people.ann) for n in range(3)][-1]
    stack.chat.ack(people.bob, direct.gid, direct.msgid)
    bob = people.online(people.bob)
    bob.group(direct.gid).wait_for()

    stack.chat.erase_user(people.ann)

    renamed = bob.page.locator("#groups button", has_text="Deleted user")
    renamed.wait_for()
    bob.wait_for_unread(renamed.get_attribute("data-gid") or "", 0)
    assert bob.group(direct.gid).count() == 0
