"""The page for everybody: two languages, small screens, a keyboard, a screen reader, dark rooms; and texts are data."""

from typing import Any

import pytest
from playwright.sync_api import expect

from imcore.model.direct import gid_of, peer_of
from imcore.msgid import pack
from tests.helpers.deadline import wait_until
from tests.helpers.page_stack import PageStack
from tests.helpers.tabs import People

PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}

# The ratio of WCAG 2, of a colour and the ground that it is on; transparent grounds are those of their parents.
_CONTRASTS = """selectors => {
    const parse = color => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
    const ground = element => {
        const color = parse(getComputedStyle(element).backgroundColor);
        return color[3] === 0 ? ground(element.parentElement) : color;
    };
    return Object.fromEntries(selectors.map(selector => {
        const element = document.querySelector(selector);
        const lights = [light(parse(getComputedStyle(element).color)), light(ground(element))];
        const [dark, bright] = lights.sort((a, b) => a - b);
        return [selector, (bright + .05) / (dark + .05)];
    }));
}"""
_NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, a')]
    .filter(element => element.checkVisibility())
    .filter(element => !(element.getAttribute('aria-label') || element.textContent.trim() || element.closest('label')))
    .map(element => element.outerHTML)"""
_TOO_WIDE = """() => [...document.querySelectorAll('body *')].filter(element => element.checkVisibility())
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.only-heard'))
    .map(element => element.outerHTML)"""


def test_the_language_is_that_of_the_browser(people: People, stack: PageStack) -> None:
    # Given one user with an English browser, and one with a Chinese one
    ann = people.online(people.ann).open(people.gid)
    bob = people.online(people.bob, locale="zh-CN").open(people.gid)
    assert [tab.page.evaluate("document.documentElement.lang") for tab in (ann, bob)] == ["en", "zh-Hans"]
    expect(ann.page.get_by_text("No messages yet")).to_be_visible()
    expect(bob.page.get_by_text("还没有消息")).to_be_visible()

    # When they talk, then each sees it in their own
    ann.write("早上好")
    bob.wait_for_texts("早上好")
    bob.write("good morning")
    expect(bob.page.get_by_role("button", name="已读")).to_be_visible()
    ann.wait_for_texts("早上好", "good morning")
    expect(ann.page.get_by_role("button", name="Read", exact=True)).to_be_visible()
    expect(bob.page.get_by_text("今天")).to_be_visible()
    bob.set_offline(True)
    expect(bob.page.get_by_text("消息会等待")).to_be_visible()

    # And no word of the page is in the other one
    shown = str(bob.page.evaluate("document.body.innerText"))
    for word in ("Online", "Message", "Today", "Send", "Read"):
        assert word not in shown


def test_a_narrow_screen_shows_one_thing_at_a_time(people: People, stack: PageStack) -> None:
    # Given a phone
    people.say(people.ann, "hello", "a_word_without_an_end_" * 30)
    bob = people.online(people.bob, **PHONE)
    expect(bob.page.locator("#conversation")).to_be_hidden()
    assert bob.page.evaluate(_TOO_WIDE) == []

    # When one opens a conversation, then it is all there is
    bob.open(people.gid)
    expect(bob.page.locator("#side")).to_be_hidden()
    expect(bob.page.locator("#composer")).to_be_in_viewport()
    assert bob.page.evaluate(_TOO_WIDE) == []
    assert not bob.page.evaluate(
        "document.activeElement === document.querySelector('#composer textarea')"
    )  # no keyboard

    # And the way back is the button, or the browser's
    bob.page.get_by_role("button", name="Back to the conversations").click()
    expect(bob.page.locator("#side")).to_be_visible()
    bob.open(people.gid)
    bob.page.go_back()
    expect(bob.page.locator("#side")).to_be_visible()
    expect(bob.page.locator("#conversation")).to_be_hidden()


def test_a_conversation_in_the_list_of_a_phone_is_not_read(people: People, stack: PageStack) -> None:
    # Given somebody who was in a conversation, and went back to the list
    bob = people.online(people.bob, **PHONE).open(people.gid)
    bob.page.get_by_role("button", name="Back to the conversations").click()
    people.say(people.ann, "hello")
    bob.wait_for_unread(people.gid, 1)
    assert stack.offset(people.gid, people.bob) is None


def test_a_keyboard_is_enough(people: People, stack: PageStack) -> None:
    # Given somebody who has no mouse
    people.say(people.ann, "hello")
    bob = people.online(people.bob)
    keyboard = bob.page.keyboard
    bob.wait_for_unread(people.gid, 1)

    def is_focused(selector: str) -> bool:
        return bool(bob.page.evaluate("selector => document.activeElement.matches(selector)", selector))

    # When they go to the list, open the conversation, and answer
    keyboard.press("Tab")
    keyboard.press("Tab")
    wait_until(lambda: is_focused("#groups button"))
    keyboard.press("Enter")
    wait_until(lambda: is_focused("#composer textarea"))
    keyboard.type("an answer")
    keyboard.press("Shift+Enter")
    keyboard.type("of two lines")
    keyboard.press("Enter")
    bob.wait_for_tick("an answer\nof two lines", "sent 0/1")

    # And go back to the messages, to the oldest one, to the newest, and see who has read it
    keyboard.press("Shift+Tab")
    wait_until(lambda: is_focused("#log"))
    for key, text in (
        ("Home", "hello"),
        ("End", "an answer\nof two lines"),
        ("ArrowUp", "hello"),
        ("ArrowDown", "an answer\nof two lines"),
    ):
        keyboard.press(key)
        wait_until(
            lambda text=text: bob.page.evaluate("document.activeElement.querySelector('.text')?.textContent") == text
        )  # type: ignore[misc]
    keyboard.press("Enter")
    expect(bob.page.get_by_role("dialog", name="Who has read it")).to_be_visible()
    expect(bob.page.get_by_role("heading", name="Not yet 1")).to_be_visible()

    # Then Escape leads back, step by step
    keyboard.press("Escape")
    expect(bob.page.get_by_role("dialog")).to_be_hidden()
    wait_until(lambda: is_focused("#rows .row, .tick"))
    keyboard.press("Escape")
    wait_until(lambda: is_focused("#composer textarea"))


def test_the_list_is_walked_with_arrows(people: People, stack: PageStack) -> None:
    gids = [f"{people.gid}-{number}" for number in range(3)]
    for gid in gids:
        stack.chat.create_group(gid, [people.cat])
    cat = people.online(people.cat)
    for gid in gids:
        cat.group(gid).wait_for()
    cat.group(gids[0]).focus()

    for key, gid in (("ArrowDown", gids[1]), ("End", gids[2]), ("ArrowUp", gids[1]), ("Home", gids[0])):
        cat.page.keyboard.press(key)
        assert cat.page.evaluate("document.activeElement.dataset.gid") == gid

    # A message moves a group to the top of the list, and leaves the focus where it is
    stack.chat.add_members(gids[2], [people.ann])
    stack.chat.send(gids[2], "hello", sender_uid=people.ann)
    wait_until(lambda: cat.page.locator("#groups button").first.get_attribute("data-gid") == gids[2])
    assert cat.page.evaluate("document.activeElement.dataset.gid") == gids[0]


def test_one_to_one_chats_begin_with_a_name(people: People, stack: PageStack) -> None:
    # Given somebody who wants to write to one person
    ann, bob = people.online(people.ann), people.online(people.bob)
    ann.page.get_by_role("button", name="New chat").click()
    ann.page.get_by_label("User to write to").fill(people.bob)
    ann.page.keyboard.press("Enter")
    expect(ann.page.locator("#title")).to_have_text(people.bob)
    expect(ann.page.get_by_text("No messages yet")).to_be_visible()
    assert ann.page.locator("#groups button").count() == 1

    # When they write
    ann.write("just the two of us")

    # Then the other one has it, in a chat that is called by the name of who wrote
    gid = gid_of(people.ann, people.bob)
    bob.wait_for_unread(gid, 1)
    expect(bob.group(gid).locator(".name")).to_have_text(people.ann)
    bob.group(gid).click()
    bob.wait_for_texts("just the two of us")
    ann.wait_for_tick("just the two of us", "all")
    expect(ann.page.get_by_role("button", name="Read", exact=True)).to_be_visible()
    expect(ann.page.locator("#presence")).to_have_text("online")


def test_a_screen_reader_hears_what_comes(people: People, stack: PageStack) -> None:
    # Given an open conversation and another one
    stack.chat.create_group(f"{people.gid} two", [people.ann, people.bob])
    bob = people.online(people.bob).open(people.gid)
    heard = bob.page.locator("[aria-live=polite]#heard")

    people.say(people.ann, "hello Bob")
    expect(heard).to_have_text(f"{people.ann}: hello Bob")
    stack.chat.send(f"{people.gid} two", "elsewhere", sender_uid=people.ann)
    expect(heard).to_have_text(f"{people.gid} two: elsewhere")

    # What one has written oneself is not read out
    bob.write("my own")
    bob.wait_for_tick("my own", "sent 0/1")
    expect(heard).to_have_text(f"{people.gid} two: elsewhere")


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_everything_that_one_can_press_has_a_name(people: People, stack: PageStack, locale: str) -> None:
    people.say(people.ann, "hello")
    bob = people.online(people.bob, locale=locale).open(people.gid)
    bob.write("my own")
    bob.wait_for_tick("my own", "sent 0/1")
    assert bob.page.evaluate(_NAMELESS) == []
    for opener, dialog in ((".tick:visible", "#info"), ("#new-chat", "#new")):
        bob.page.locator(opener).last.click()
        expect(bob.page.locator(dialog)).to_be_visible()
        assert bob.page.evaluate(_NAMELESS) == []
        assert bob.page.locator(dialog).get_attribute("aria-labelledby")
        bob.page.keyboard.press("Escape")
    names = bob.page.evaluate(
        "[...document.querySelectorAll('[tabindex]')].map(e => Number(e.getAttribute('tabindex')))"
    )
    assert set(names) <= {0, -1}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_on_their_grounds(people: People, stack: PageStack, scheme: Any) -> None:
    # Given the page in a bright room or in a dark one
    people.say(people.ann, "hello")
    bob = people.online(people.bob, color_scheme=scheme)
    bob.wait_for_unread(people.gid, 1)
    shown = [".badge", ".preview", "#state", "#groups time"]
    contrasts = bob.page.evaluate(_CONTRASTS, shown)
    bob.open(people.gid)
    bob.write("my own")
    bob.wait_for_tick("my own", "sent 0/1")
    people.online(people.ann).open(people.gid)
    bob.wait_for_tick("my own", "all 1/1")
    bob.set_offline(True)
    open_ones = [
        ".row.own .text",
        ".row.own time",
        ".row.own .tick",
        ".row .sender",
        ".day",
        "#older",
        "#banner",
        "#presence",
    ]
    contrasts |= bob.page.evaluate(_CONTRASTS, open_ones)

    # Then all of it has the contrast that WCAG asks for (AA)
    assert {selector: round(ratio, 1) for selector, ratio in contrasts.items() if ratio < 4.5} == {}
    ground = bob.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 64) == (scheme == "dark")


def test_a_chat_whose_gid_is_a_hash_has_the_name_of_the_other_one(people: People, stack: PageStack) -> None:
    # Given two users with long names
    one, other = (f"{people.gid}{letter}".ljust(100, letter) for letter in "xy")
    stack.chat.create_group(f"{people.gid} long", [one, other])
    tab, second = people.online(one), people.online(other)

    # When one writes to the other
    tab.page.get_by_role("button", name="New chat").click()
    tab.page.get_by_label("User to write to").fill(other)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#title")).to_have_text(other)
    tab.write("hello")
    tab.wait_for_tick("hello", "sent")

    # Then both see whom they write to, also later
    gid = gid_of(one, other)
    expect(second.group(gid).locator(".name")).to_have_text(one)
    tab.page.reload()
    expect(tab.page.locator("#title")).to_have_text(other)
    expect(tab.group(gid).locator(".name")).to_have_text(other)
    tab.write("and once more")
    second.group(gid).click()
    second.wait_for_texts("hello", "and once more")


NASTY = [
    "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "${alert(3)} {{4}} &lt;b&gt; \" ' `",
    "שלום, עולם",
    "\u202eright to left",
    "line one\nline two",
    "👩‍👩‍👧 群 ﷽",
]


def test_texts_and_names_are_data(people: People, stack: PageStack) -> None:
    # Given names and texts that would be markup
    gid, uid = f"<b>{people.gid}</b>\"'", f"<i>{people.cat}</i>&amp;"
    stack.chat.create_group(gid, [uid, people.bob])
    for text in NASTY:
        stack.chat.send(gid, text, sender_uid=uid)

    # When somebody looks at them
    bob = people.online(people.bob)
    bob.page.on("dialog", lambda dialog: bob.faults.append(dialog.message))
    bob.page.get_by_role("button", name=gid).click()

    # Then they are shown as they are
    bob.wait_for_texts(*NASTY)
    expect(bob.page.locator("#title")).to_have_text(gid)
    expect(bob.page.locator(".sender").first).to_have_text(uid)
    assert bob.page.locator("#rows img, #rows script, #rows b, #rows i").count() == 0
    assert bob.page.locator("#rows .text").evaluate_all("rows => rows.every(row => row.dir === 'auto')")


_GIDS = """async pairs => {
    const {directGid, peerOf} = await import('./imcore.js');
    return Promise.all(pairs.map(async ([one, other]) => {
        const gid = await directGid(one, other);
        return [gid, peerOf(gid, one)];
    }));
}"""
_POSITIONS = """async msgids => {
    const {pack, unpack} = await import('./imcore.js');
    return msgids.map(msgid => [pack(msgid), unpack(pack(msgid))]);
}"""


def test_ids_are_those_of_the_server(people: People) -> None:
    """The client works out gids and positions by itself; it must do that as the server does."""
    page = people.online(people.ann).page
    users = ["a", "b", "ann:bob", "1:x", "é", "群", "😀", "\uffee", "#ubuntu", "x" * 128, "群" * 42]
    pairs = [(one, other) for one in users for other in users]
    assert page.evaluate(_GIDS, pairs) == [[gid := gid_of(one, other), peer_of(gid, one)] for one, other in pairs]

    msgids = ["1577836800000-1", "1796125580911-0", "1796125580911-8191", "2677348427775-8191"]
    assert page.evaluate(_POSITIONS, msgids) == [[pack(msgid), msgid] for msgid in msgids]
