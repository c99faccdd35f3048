"""What a server is refused for before a durable send; and what `durable` may be."""

import pytest

from imcore import Chat
from imcore.errors import ConfigurationError, InvalidInput, RedisRefuses
from imcore.model.values import FSYNCED, REPLICATED, Durable
from imcore.streams.durability import refusal
from imcore.streams.server_info import ServerInfo

ABLE = {"server": "Redis", "version": "7.2.0", "appendonly": True, "appendfsync": "everysec", "replicas": 1}


@pytest.mark.parametrize(
    ("kind", "differs", "says"),
    [
        (FSYNCED, {"version": "7.0.15"}, "Redis 7.0.15"),
        (FSYNCED, {"appendonly": False}, "appendonly is no; set yes"),
        (FSYNCED, {"appendfsync": "no"}, "appendfsync is no; set everysec or always"),
        (FSYNCED, {"no_appendfsync_on_rewrite": True}, "no-appendfsync-on-rewrite is yes; set no"),
        (REPLICATED, {"replicas": 0}, "no replica"),
    ],
)
def test_a_server_that_cannot_is_refused_in_one_line(kind: Durable, differs: dict[str, object], says: str) -> None:
    assert refusal(kind, ServerInfo(**ABLE), "here") is None  # type: ignore[arg-type]
    refused = refusal(kind, ServerInfo(**{**ABLE, **differs}), "here")  # type: ignore[arg-type]
    assert isinstance(refused, RedisRefuses if kind == REPLICATED else ConfigurationError)
    assert says in str(refused)
    assert "\n" not in str(refused)


def test_a_server_that_says_nothing_about_itself_is_not_refused() -> None:
    assert refusal(FSYNCED, ServerInfo(), "here") is refusal(REPLICATED, ServerInfo(), "here") is None


def test_another_word_is_refused_before_the_send(chat: Chat) -> None:
    chat.create_group("team", ["ann"])
    with pytest.raises(InvalidInput, match="none, replicated or fsynced"):
        chat.send("team", "hi", sender_uid="ann", durable="sure")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        chat.send_direct("bob", "hi", sender_uid="ann", durable="sure")  # type: ignore[arg-type]
    assert chat.groups_of("bob") == []
