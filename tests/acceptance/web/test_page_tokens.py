"""Who is who in the page: the token of a link, a token that ends, and the users of a demo."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, WebSocketRoute, expect

from tests.helpers.commands import Im
from tests.helpers.deadline import wait_until
from tests.helpers.page_stack import PageStack
from tests.helpers.servers import free_ports, require_server
from tests.helpers.tabs import People, Tab
from tests.helpers.web import token


def test_the_token_of_a_link_stays_in_its_tab(people: People, stack: PageStack) -> None:
    # Given a tab that was opened with a link
    ann = people.online(people.ann)

    # Then the token is nowhere in the address, and the tab keeps it over a reload
    assert ann.page.url == stack.url
    assert ann.page.evaluate("history.length") <= 2
    ann.page.reload()
    ann.wait_for_state()

    # And another tab has none
    other = people.tab(people.ann)
    other.page.goto(stack.url)
    expect(other.page.get_by_role("dialog", name="Sign in")).to_be_visible()
    other.page.keyboard.press("Escape")
    expect(other.page.get_by_role("dialog", name="Sign in")).to_be_visible()


def test_one_signs_in_with_a_token(people: People, stack: PageStack) -> None:
    ann = people.tab(people.ann)
    ann.page.goto(stack.url)

    # When one gives something that is no token
    ann.page.get_by_label("Token").fill("nonsense")
    ann.page.get_by_role("button", name="Continue").click()
    expect(ann.page.get_by_text("This is not a token")).to_be_visible()

    # And then a token
    ann.page.get_by_label("Token").fill(token(people.ann))
    ann.page.get_by_role("button", name="Continue").click()
    ann.wait_for_state()
    expect(ann.page.locator("#me")).to_have_text(people.ann)


def test_a_token_of_somebody_else_in_the_same_tab_is_another_user(people: People, stack: PageStack) -> None:
    ann = people.online(people.ann).open(people.gid)
    ann.page.goto(stack.link(people.bob))
    expect(ann.page.locator("#me")).to_have_text(people.bob)
    ann.wait_for_state()
    assert ann.page.url == stack.url


@pytest.mark.parametrize("how", ["before it ends", "afterwards"])
def test_one_goes_on_with_a_new_token(people: People, stack: PageStack, how: str) -> None:
    # Given a session that ends soon; the server says so before
    ann = people.tab(people.ann).load(stack.link(people.ann, ttl_s=20 if how == "before it ends" else 3))
    ann.open(people.gid)
    if how == "afterwards":
        ann.wait_for_state("unauthorized")
        expect(ann.page.get_by_role("dialog", name="Sign in")).to_contain_text(
            # On a slow machine the token has ended before the page was there.
            re.compile("Your session has ended|did not take your token: the token has expired")
        )
    else:
        ann.page.locator("#banner").get_by_role("button", name="Sign in").click()

    # When one gives a new token
    ann.page.get_by_label("Token").fill(token(people.ann))
    ann.page.get_by_role("button", name="Continue").click()

    # Then the page goes on where it was
    ann.wait_for_state("online")
    expect(ann.page.locator("#banner")).to_be_hidden()
    ann.write("still here")
    ann.wait_for_tick("still here", "sent 0/1")


def test_a_message_that_was_written_after_the_end_goes_out_with_a_new_token(people: People, stack: PageStack) -> None:
    ann = people.tab(people.ann).load(stack.link(people.ann, ttl_s=3)).open(people.gid)
    ann.wait_for_state("unauthorized")
    ann.page.keyboard.press("Escape")
    ann.write("while signed out")
    wait_until(lambda: ann.rows() == [["while signed out", "waiting"]])

    ann.page.locator("#banner").get_by_role("button", name="Sign in").click()
    ann.page.get_by_label("Token").fill(token(people.ann))
    ann.page.get_by_role("button", name="Continue").click()

    wait_until(lambda: ann.rows() == [["while signed out", "sent 0/1"]])


def test_a_token_that_the_server_does_not_take_is_no_loop(people: People, stack: PageStack) -> None:
    ann = people.tab(people.ann)
    sockets: list[object] = []
    ann.page.on("websocket", lambda socket: sockets.append(socket))  # noqa: PLW0108 (playwright marks the function)
    ann.page.goto(f"{stack.url}#token={token(people.ann)[:-6]}AAAAAA")
    ann.wait_for_state("unauthorized")
    expect(ann.page.get_by_role("dialog", name="Sign in")).to_contain_text(
        "The server did not take your token: the token is not valid"
    )
    for _ in range(3):
        ann.set_hidden(True)
        ann.set_hidden(False)
        ann.page.evaluate("dispatchEvent(new Event('online'))")
    assert len(sockets) == 1


def test_a_demo_has_two_users_and_one_link(tmp_path: Path, browser: Browser) -> None:
    # Given what the README says, from one command to one link
    require_server()
    [port] = free_ports(1)
    command = [sys.executable, "-m", "imcore.cli.main", "--json", "up", "--web", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=Im(data_dir=tmp_path).environment) as up:
        try:
            assert up.stdout is not None
            url = next(line["url"] for line in map(json.loads, up.stdout) if "url" in line)

            # When one opens it, and then the other user in a tab of its own
            context = browser.new_context(locale="en-GB")
            ann = Tab(context.new_page()).load(url)
            ann.open("demo")
            ann.write("hello Bob")
            with context.expect_page() as opened:
                ann.page.get_by_role("link", name="Open as bob").click()
            bob = Tab(opened.value).wait_for_state()

            # Then they see each other's ticks, each in a tab with a token of its own
            assert bob.page.url == ann.page.url.partition("#")[0]
            ann.wait_for_tick("hello Bob", "sent 0/1")
            bob.open("demo")
            ann.wait_for_tick("hello Bob", "all 1/1")
            ann.page.reload()
            ann.wait_for_state()
            assert [ann.page.locator("#me").text_content(), bob.page.locator("#me").text_content()] == ["ann", "bob"]
            context.close()
            assert [*ann.faults, *bob.faults] == []
        finally:
            up.terminate()
            up.communicate()


def test_a_new_token_outlives_a_connection_that_is_lost_meanwhile(people: People, stack: PageStack) -> None:
    # Given a token that ends soon, and a network that fails as the server is told of a new one
    new = token(people.ann)
    told: list[str] = []

    def route(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def pass_on(text: str | bytes) -> None:
            call = json.loads(text)
            if call["method"] == "connect":
                told.append(call["params"]["token"])
            if len(told) == 2:
                socket.close(code=3000)
            else:
                server.send(text)

        socket.on_message(pass_on)

    ann = people.tab(people.ann)
    ann.page.route_web_socket("**/ws", route)
    ann.load(stack.link(people.ann, ttl_s=20)).open(people.gid)
    ann.page.locator("#banner").get_by_role("button", name="Sign in").click()

    # When one gives it
    ann.page.get_by_label("Token").fill(new)
    ann.page.get_by_role("button", name="Continue").click()

    # Then the next connection has it, too
    wait_until(
        lambda: ann.page.evaluate("true") and told[1:] == [new, new]
    )  # the page's turn lets the route have its own
    ann.wait_for_state("online")
    expect(ann.page.locator("#banner")).to_be_hidden()
    expect(ann.page.get_by_role("dialog", name="Sign in")).to_be_hidden()
