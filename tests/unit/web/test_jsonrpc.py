"""Texts become requests or exact errors; answers are compact UTF-8."""

import json
from typing import Any

import pytest

from imcore.errors import NotMember, RedisUnavailable, UnknownMessage
from imcore.web import jsonrpc
from imcore.web.jsonrpc import MAX_DEPTH, Request, RpcError


class Trimmed(UnknownMessage):
    """As `imcore.operations` has one of its own."""


def refused(text: bytes) -> tuple[int, jsonrpc.Id, str]:
    with pytest.raises(RpcError) as refusal:
        jsonrpc.parse(text)
    return refusal.value.code, refusal.value.id, str(refusal.value)


def nested(depth: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"meta":' + b"[" * depth + b"]" * depth + b"}}"


NO_JSON = {
    "nothing": (b"", "not JSON"),
    "half": (b"{", "not JSON"),
    "a word": (b"hello", "not JSON"),
    "no UTF-8": (b"\xff", "UTF-8"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), "UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not JSON"),
    "a key twice": (b'{"a":1,"a":2}', "twice"),
    "an inner key twice": (b'{"p":{"a":1,"a":2}}', "twice"),
    "NaN": (b'{"a":NaN}', "NaN"),
    "Infinity": (b'{"a":-Infinity}', "Infinity"),
    "a number that is too large": (b"[1e999]", "large"),
    "a number that is too long": (b"[" + b"9" * 5000 + b"]", "too long"),
    "many arrays": (b"[" * 100_000, "deep"),
    "many objects": (b'{"a":' * 50_000, "deep"),
    "one level too many": (nested(MAX_DEPTH - 1), "deep"),
}


class TestRequests:
    def test_a_request_and_a_notification(self) -> None:
        call = jsonrpc.parse('{"jsonrpc":"2.0","id":7,"method":"send","params":{"gid":"群"}}'.encode())
        assert call == Request("send", {"gid": "群"}, 7, is_notification=False)
        call = jsonrpc.parse(b'{"jsonrpc":"2.0","method":"ack"}')
        assert call == Request("ack", {}, None, is_notification=True)

    @pytest.mark.parametrize("id_", [0, -1, 1.5, "", "a", "群", None, 2**53, "x" * 100])
    def test_texts_numbers_and_null_are_ids_and_come_back(self, id_: jsonrpc.Id) -> None:
        text = json.dumps({"jsonrpc": "2.0", "id": id_, "method": "x"}).encode()
        call = jsonrpc.parse(text)
        assert (call.id, call.is_notification) == (id_, False)
        assert json.loads(jsonrpc.result(1, call.id))["id"] == id_

    @pytest.mark.parametrize("id_", [True, False, [], {}, [1], {"a": 1}])
    def test_other_ids_are_refused(self, id_: object) -> None:
        text = json.dumps({"jsonrpc": "2.0", "id": id_, "method": "x"}).encode()
        assert refused(text) == (-32600, None, "an id is a text, a number or null")

    def test_an_id_that_utf8_cannot_hold_comes_back_as_it_came(self) -> None:
        call = jsonrpc.parse(b'{"jsonrpc":"2.0","id":"\\ud800","method":"x"}')
        assert json.loads(jsonrpc.result(1, call.id))["id"] == "\ud800"


class TestRefusals:
    @pytest.mark.parametrize("name", NO_JSON)
    def test_what_is_no_json_is_a_parse_error(self, name: str) -> None:
        text, words = NO_JSON[name]
        code, id_, message = refused(text)
        assert (code, id_) == (-32700, None)
        assert words in message

    def test_nesting_is_counted_outside_of_texts(self) -> None:
        text = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "send", "params": {"content": '[{"\\' * 5000}}).encode()
        assert jsonrpc.parse(text).params["content"] == '[{"\\' * 5000
        assert jsonrpc.parse(nested(MAX_DEPTH - 2)).method == "x"
        side_by_side = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":[' + b",".join([b"[]"] * 1000) + b"]}}"
        assert len(jsonrpc.parse(side_by_side).params["a"]) == 1000

    @pytest.mark.parametrize("text", [b"[]", b'[{"jsonrpc":"2.0","id":1,"method":"x"}]'])
    def test_a_batch_is_refused_clearly(self, text: bytes) -> None:
        assert refused(text) == (-32600, None, "a batch is not taken: send one object at a time")

    @pytest.mark.parametrize(
        ("value", "id_"),
        [
            *((1, None), ("x", None), (None, None), ({}, None), ({"id": 3, "method": "x"}, 3)),
            *(({"jsonrpc": "1.0", "id": 3, "method": "x"}, 3), ({"jsonrpc": "2.0", "id": "a"}, "a")),
            *(({"jsonrpc": "2.0", "id": 3, "method": 1}, 3), ({"jsonrpc": "2.0", "method": "x", "params": "y"}, None)),
            ({"jsonrpc": "2.0", "id": 4, "method": "x", "params": None}, 4),
        ],
    )
    def test_what_is_no_request_is_an_invalid_request(self, value: Any, id_: jsonrpc.Id) -> None:
        assert refused(json.dumps(value).encode())[:2] == (-32600, id_)

    def test_parameters_by_position_are_refused(self) -> None:
        text = b'{"jsonrpc":"2.0","id":3,"method":"x","params":[1]}'
        assert refused(text) == (-32602, 3, "parameters are given by name, in an object")


class TestAnswers:
    def test_an_im_error_says_its_name_and_whether_to_try_again(self) -> None:
        for error, data in (
            (NotMember("no"), {"error": "NotMember", "retry": False}),
            (RedisUnavailable("away"), {"error": "RedisUnavailable", "retry": True}),
            (Trimmed("gone"), {"error": "UnknownMessage", "retry": False}),
        ):
            answer = json.loads(jsonrpc.failure(error, 5))
            assert answer == {
                "jsonrpc": "2.0",
                "error": {"code": -32000, "message": str(error), "data": data},
                "id": 5,
            }

    def test_an_error_of_the_protocol_has_its_code_and_no_data(self) -> None:
        answer = json.loads(jsonrpc.failure(RpcError(-32601, "there is no method 'x'"), "a"))
        assert answer["error"] == {"code": -32601, "message": "there is no method 'x'"}

    def test_texts_are_utf8_and_compact(self) -> None:
        assert (
            jsonrpc.notification("left", {"gid": "群"})
            == '{"jsonrpc":"2.0","method":"left","params":{"gid":"群"}}'.encode()
        )


def test_the_same_short_text_is_parsed_once() -> None:
    text = b'{"jsonrpc":"2.0","method":"ack","params":{"gid":"team","msgid":"1767225600000-0"}}'
    assert jsonrpc.parse(text) is jsonrpc.parse(bytes(text))
