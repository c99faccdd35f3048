"""One client on a socket of the test: who it is, its calls, what it is told, and its bounds."""

import asyncio

import pytest

from imcore.gateway.fanout import Ended, NewMessage, Recipients
from imcore.msgid import pack
from tests.helpers.gateway_events import FIRST, LAST, one_of_each
from tests.helpers.web import T1, T2, FakeSocket, Setup, message, notification, request, token, with_setup


def code_of(socket: FakeSocket) -> int | None:
    return socket.closed[0] if socket.closed else None


def news(setup: Setup, content: str = "hi", msgid: str = T2) -> NewMessage:
    return NewMessage(setup.recipients(), message(msgid, content), pack(msgid))


class TestConnecting:
    def test_connect_is_answered_before_any_notification(self) -> None:
        async def story(setup: Setup) -> None:
            socket = setup.client()
            assert socket.client
            setup.chat.gate.clear()
            socket.client.received(request("connect", token=token()))
            while not setup.gateway.sessions:
                await asyncio.sleep(0)
            await setup.push(news(setup, "early"))
            setup.chat.gate.set()
            await setup.ask(socket)
            await setup.push(news(setup, "late"))
            answer, *others = socket.sent
            assert answer == {
                "jsonrpc": "2.0",
                "id": 1,
                "result": {"uid": "ann", "dataset": "data", "groups": [], "silent": []},
            }
            assert [each["params"]["content"] for each in others] == ["early", "late"]

        with_setup(story)

    def test_what_comes_before_the_answer_waits_for_it(self) -> None:
        async def story(setup: Setup) -> None:
            socket = setup.client()
            texts = [request("connect", token=token()), notification("ack", gid="team", msgid=T1), request("groups", 2)]
            answers = await setup.ask(socket, *texts)
            assert [each["id"] for each in answers] == [1, 2]
            assert setup.gateway.acked == [("ann", "team", T1)]

        with_setup(story)

    def test_options_reach_the_session(self) -> None:
        async def story(setup: Setup) -> None:
            await setup.connected(start="live", after={"team": T1}, most=5)
            assert setup.gateway.options == {"start": "live", "after": {"team": T1}, "most": 5}

        with_setup(story)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            (request("groups"), "NotAuthenticated"),
            (request("connect"), "NotAuthenticated"),
            (request("connect", token="rubbish"), "NotAuthenticated"),
        ],
        ids=["another call", "no token", "a bad token"],
    )
    def test_without_a_token_there_is_an_error_and_the_end(self, text: bytes, error: str) -> None:
        async def story(setup: Setup) -> None:
            socket = setup.client()
            await setup.ask(socket, text)
            [refusal] = socket.errors
            assert (refusal["code"], refusal["data"]) == (-32000, {"error": error, "retry": False})
            assert code_of(socket) == 4401
            assert setup.gateway.sessions == []

        with_setup(story)

    def test_a_client_that_says_nothing_is_closed(self) -> None:
        async def story(setup: Setup) -> None:
            socket = setup.client()
            await asyncio.sleep(0.2)
            assert socket.closed == (4401, "no token within 0.05 s: `connect` is the first call")

        with_setup(story, handshake_ms=50)

    def test_a_token_in_the_header_is_enough_for_calls(self) -> None:
        async def story(setup: Setup) -> None:
            socket = setup.client({"authorization": f"Bearer {token()}"})
            assert (await setup.ask(socket, request("groups")))[0]["result"][0]["gid"] == "team"
            assert setup.gateway.sessions == []
            assert "result" in (await setup.ask(socket, request("connect", 2)))[0]
            assert len(setup.gateway.sessions) == 1
            refused = setup.client({"authorization": "Bearer rubbish"})
            await setup.ask(refused, request("groups"))
            assert code_of(refused) == 4401

        with_setup(story)

    def test_a_user_has_so_many_sockets_and_another_one_his_own(self) -> None:
        async def story(setup: Setup) -> None:
            first = await setup.connected()
            await setup.connected()
            third = setup.client()
            await setup.ask(third, request("connect", token=token()))
            assert third.errors[0]["data"] == {"error": "TooManySockets", "retry": True}
            assert code_of(third) == 4429
            await setup.connected("bob")
            assert first.client
            first.client.lost()
            await setup.connected()

        with_setup(story, user_sockets=2)

    def test_a_full_server_says_so(self) -> None:
        async def story(setup: Setup) -> None:
            await setup.connected()
            second = setup.client()
            assert second.errors[0]["data"]["error"] == "TooManySockets"
            assert code_of(second) == 4429
            assert second.client
            second.client.lost()

        with_setup(story, max_sockets=1)


class TestTokens:
    def test_the_end_of_a_token_is_announced_and_kept(self) -> None:
        async def story(setup: Setup) -> None:
            socket = setup.client()
            await setup.ask(socket, request("connect", token=token(ttl_s=1)))
            await asyncio.sleep(0.7)
            [notice] = [each for each in socket.sent if each.get("method") == "expiring"]
            assert notice["params"]["expires_in_s"] in {0, 1}
            assert socket.closed is None
            await asyncio.sleep(0.7)
            assert socket.closed == (4401, "the token has expired")
            assert setup.gateway.calls == [("end", "ann")]

        with_setup(story)

    def test_a_new_token_goes_on_without_a_new_session(self) -> None:
        async def story(setup: Setup) -> None:
            socket = setup.client()
            await setup.ask(socket, request("connect", token=token(ttl_s=1)))
            [answer] = await setup.ask(socket, request("connect", 2, token=token(ttl_s=60)))
            assert answer["result"]["groups"] == [
                {"gid": "team", "last_ack_msgid": T1, "last_msgid": T2, "unread": 1, "after": T1, "last_erasure": None},
            ]
            await asyncio.sleep(1.3)
            assert socket.closed is None
            assert len(setup.gateway.sessions) == 1

        with_setup(story)

    def test_another_users_token_is_refused_and_the_session_goes_on(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            texts = [
                request("connect", 2, token=token("bob")),
                request("connect", 3, token="rubbish"),
                request("connect", 4, token=token(), most=3),
            ]
            answers = await setup.ask(socket, *texts)
            errors = [each["error"]["data"]["error"] for each in answers]
            assert errors == ["NotAllowed", "NotAuthenticated", "InvalidInput"]
            assert socket.closed is None
            assert "result" in (await setup.ask(socket, request("groups", 5)))[0]

        with_setup(story)


class TestCalls:
    def test_calls_that_change_something_are_done_in_their_order(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            sends = [request("send", number, gid="team", content=str(number)) for number in range(50)]
            answers = await setup.ask(socket, *sends)
            assert [each["id"] for each in answers] == list(range(50))
            assert [each[2] for each in setup.chat.log] == [str(number) for number in range(50)]
            assert setup.chat.most_running == 1

        with_setup(story)

    def test_ten_thousand_calls_at_once_are_bounded_work(self) -> None:
        async def story(setup: Setup) -> None:
            socket, other = await setup.connected(), await setup.connected("bob")
            setup.chat.gate.clear()
            assert socket.client
            for number in range(10_000):
                socket.client.received(request("groups", number))
            await asyncio.sleep(0)
            assert setup.chat.running <= 8
            assert code_of(socket) == 4429
            errors = socket.errors
            assert {each["data"]["error"] for each in errors} == {"TooManyCalls"}
            assert all(each["data"]["retry"] for each in errors)
            assert len(errors) < 2000
            setup.chat.gate.set()
            assert "result" in (await setup.ask(other, request("groups")))[0]

        with_setup(story, calls_per_s=100, calls_burst=1000)

    def test_too_many_waiting_calls_are_refused_one_by_one(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            setup.chat.gate.clear()
            assert socket.client
            for number in range(300):
                socket.client.received(request("groups", number))
            assert [each["id"] for each in socket.sent] == list(range(264, 300))
            setup.chat.gate.set()
            assert len(await setup.ask(socket)) == 264

        with_setup(story)

    def test_acks_are_never_refused_for_their_number_until_it_is_a_flood(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            assert socket.client
            for _ in range(1000):
                socket.client.received(notification("ack", gid="team", msgid=T1))
            await asyncio.sleep(0)
            assert len(setup.gateway.acked) == 1000
            assert (socket.closed, socket.sent) == (None, [])

        with_setup(story, calls_per_s=1, calls_burst=60)

    @pytest.mark.parametrize(
        "text",
        [
            notification("ack", gid="team", msgid="rubbish", more=1),
            notification("ack", gid=7),
            notification("unknown"),
            notification("send", gid="others", content="x"),
        ],
        ids=["unknown parameter", "wrong type", "unknown method", "not a member"],
    )
    def test_a_notification_has_no_answer_whatever_is_wrong(self, text: bytes) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            assert await setup.ask(socket, text) == []
            assert socket.closed is None

        with_setup(story)

    def test_an_ack_as_a_request_is_answered_like_im_ack(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            [answer] = await setup.ask(socket, request("ack", gid="team", msgid=T1))
            assert answer["result"] == {"gid": "team", "uid": "ann", "last_ack_msgid": T1, "advanced": True}
            assert setup.gateway.acked == []

        with_setup(story)

    @pytest.mark.parametrize(
        ("method", "params", "code", "words"),
        [
            ("fly", {}, -32601, "no method 'fly'"),
            ("demo_token", {"uid": "bob"}, -32601, "no method"),
            ("send", {"gid": "team"}, -32602, "missing parameters: content"),
            ("send", {"gid": "team", "content": "x", "colour": 1, "a": 2}, -32602, "unknown parameters: 'a', 'colour'"),
            ("send", {"gid": 1, "content": "x"}, -32602, "gid is a string; it is 1"),
            ("tallies", {"gid": "team", "msgids": "x"}, -32602, "msgids is an array"),
            ("tallies", {"gid": "team", "msgids": [1]}, -32602, "each of msgids is a string"),
            ("history", {"gid": "team", "limit": True}, -32602, "limit is an integer"),
            ("confirm_receipts", {"receipts": [{"gid": "team"}]}, -32602, "has no msgid"),
            ("create_group", {"gid": "x"}, -32000, "does not allow `create_group`"),
            ("send", {"gid": "team", "content": "x", "uid": "bob"}, -32000, "does not allow `send` for 'bob'"),
            ("status", {"gid": "others"}, -32000, "not a member"),
            ("members", {"gid": "others"}, -32000, "not a member"),
            ("online", {"uids": ["bob"]}, -32000, "gid of a group"),
            ("recall", {"gid": "team", "msgid": T1, "admin": True}, -32000, "only a server"),
        ],
    )
    def test_a_mistake_has_its_error(self, method: str, params: dict[str, object], code: int, words: str) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            [answer] = await setup.ask(socket, request(method, "x", **params))
            assert answer["id"] == "x"
            assert answer["error"]["code"] == code
            assert words in answer["error"]["message"]
            assert ("data" in answer["error"]) == (code == -32000)

        with_setup(story)

    def test_a_fault_of_the_program_is_an_internal_error(self, caplog: pytest.LogCaptureFixture) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            [answer] = await setup.ask(socket, request("pull"))  # the chat of the test has none
            assert answer["error"] == {"code": -32603, "message": "the server has failed: its log says why"}

        with_setup(story)
        assert "the method pull has failed" in caplog.text


class TestNotifications:
    def test_each_event_has_its_notification(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            await setup.push(*one_of_each(setup.recipients().sessions))
            tally = {"read": 1, "unread": 2, "delivered": 1, "version": 33}
            message = {"seq": 1, "sender_uid": "ann", "content": "hello", "time": "2026-01-01T00:00:00.001Z"}
            assert [(each["method"], each["params"]) for each in socket.sent] == [
                ("message", {"gid": "team", "msgid": FIRST, "client_msgid": None, **message}),
                ("receipts", {"receipts": [{"gid": "team", "msgid": FIRST, **tally}]}),
                ("position", {"gid": "team", "last_ack_msgid": LAST}),
                ("position", {"gid": "team", "last_ack_msgid": None}),
                ("gap", {"gid": "team", "from_msgid": FIRST, "to_msgid": LAST}),
                ("rewound", {"gid": "team", "after_msgid": FIRST}),
                ("rewound", {"gid": "team", "after_msgid": None}),
                ("joined", {"gid": "team"}),
                ("left", {"gid": "team"}),
            ]
            assert socket.closed == (4401, "the user was erased")

        with_setup(story)

    def test_a_socket_of_an_erased_user_is_closed(self) -> None:
        async def story(setup: Setup) -> None:
            sockets = [await setup.connected() for _ in range(2)]
            await setup.push(Ended(Recipients(setup.recipients().sessions[:1])), news(setup))
            assert [socket.closed for socket in sockets] == [(4401, "the user was erased"), None]
            assert [len(socket.sent) for socket in sockets] == [0, 1]

        with_setup(story)

    def test_a_frame_is_encoded_once_for_all(self) -> None:
        async def story(setup: Setup) -> None:
            sockets = [await setup.connected() for _ in range(3)]
            await setup.push(news(setup))
            frames = {id(socket.frames[0]) for socket in sockets}
            assert len(frames) == 1

        with_setup(story)


class TestSlowSockets:
    @pytest.mark.parametrize(("most_bytes", "calls"), [(2_000, ["pause", "resume"]), (100_000, [])])
    def test_what_waits_goes_on_in_order_and_much_of_it_pauses_the_session(
        self, most_bytes: int, calls: list[str]
    ) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            socket.is_full = True
            await setup.push(*(news(setup, str(number)) for number in range(5)))
            assert [each["params"]["content"] for each in socket.sent] == ["0"]
            assert setup.gateway.calls == [(call, "ann") for call in calls[:1]]
            socket.drain()
            assert [each["params"]["content"] for each in socket.sent] == ["0", "1", "2", "3", "4"]
            assert setup.gateway.calls == [(call, "ann") for call in calls]

        with_setup(story, max_buffered_bytes=most_bytes)

    def test_calls_wait_while_their_answers_would(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            socket.is_full = True
            await setup.ask(socket, request("group", 1, gid="team"))
            assert socket.client
            for number in range(2, 20):
                socket.client.received(request("group" if number % 3 else "send", number, gid="team", content="x"))
                await asyncio.sleep(0.001)
            assert setup.chat.log == [("group", "team")]
            socket.drain()
            await setup.ask(socket)
            assert sorted(each["id"] for each in socket.sent) == list(range(1, 20))

        with_setup(story)

    def test_a_socket_that_holds_too_much_is_closed(self) -> None:
        async def story(setup: Setup) -> None:
            socket, other = await setup.connected(), await setup.connected("bob")
            socket.is_full = True
            await setup.push(*(news(setup, "x" * 1000) for _ in range(100)))
            assert socket.closed == (4408, "the socket takes too little of what is sent")
            assert len(other.frames) == 100
            assert ("end", "ann") in setup.gateway.calls

        with_setup(story, max_buffered_bytes=10_000)

    def test_a_socket_that_takes_nothing_is_closed(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            socket.is_full = True
            await setup.push(news(setup))
            await asyncio.sleep(0.15)
            assert socket.closed is None
            socket.buffered -= 1  # it has taken something
            await asyncio.sleep(0.15)
            assert socket.closed is None
            await asyncio.sleep(0.4)
            assert code_of(socket) == 4408

        with_setup(story, patience_ms=200)


class TestTheEnd:
    def test_a_frame_that_cannot_be_taken_is_an_error_and_the_end(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            assert socket.client
            socket.client.refused_frame(1009, "a frame has at most 5 bytes")
            assert socket.errors == [{"code": -32600, "message": "a frame has at most 5 bytes"}]
            assert socket.closed == (1009, "a frame has at most 5 bytes")

        with_setup(story)

    def test_a_send_that_came_is_done_though_its_socket_is_gone(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            setup.chat.gate.clear()
            assert socket.client
            socket.client.received(request("send", gid="team", content="last"))
            socket.client.received(request("groups"))
            await asyncio.sleep(0)
            socket.client.lost()
            setup.chat.gate.set()
            await setup.ask(socket)
            assert [each[0] for each in setup.chat.log] == ["send"]
            assert socket.sent == []

        with_setup(story)

    def test_a_server_that_ends_answers_what_it_has_in_hand(self) -> None:
        async def story(setup: Setup) -> None:
            socket = await setup.connected()
            setup.chat.gate.clear()
            assert socket.client
            socket.client.received(request("send", 7, gid="team", content="last"))
            closing = asyncio.create_task(setup.hub.close())
            await asyncio.sleep(0)
            socket.client.received(notification("ack", gid="team", msgid=T1))
            socket.client.received(request("send", 8, gid="team", content="too late"))
            setup.chat.gate.set()
            while not socket.closed:
                await asyncio.sleep(0)
            socket.client.lost()
            await closing
            assert [each["id"] for each in socket.sent] == [7]
            assert socket.closed == (1001, "the server ends")
            assert setup.gateway.acked == [("ann", "team", T1)]
            assert setup.gateway.calls[-1] == ("close", "")

        with_setup(story)
