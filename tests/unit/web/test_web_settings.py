"""The settings of the network side, and which pages may connect."""

from dataclasses import fields

import pytest

from imcore.errors import ConfigurationError
from imcore.web.settings import WebSettings, origin_is_allowed
from tests.helpers.web import web_settings

NUMBERS = [field.name for field in fields(WebSettings) if isinstance(field.default, int)]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_read_from_their_variables(name: str) -> None:
    variable = f"IM_WEB_{name.upper()}"
    assert getattr(WebSettings.from_env({variable: "7"}), name) == 7
    assert getattr(WebSettings.from_env({variable: ""}), name) == getattr(WebSettings(), name)
    for text in ("0", "-1", "x", "1.5", "9" * 30):
        with pytest.raises(ConfigurationError, match=f"^{variable} must be a whole number from 1 to "):
            WebSettings.from_env({variable: text})


@pytest.mark.parametrize(
    "text", ["*", "chat.example.org", "https://chat.example.org/", "https://", "ftp://a", "https://a/b"]
)
def test_an_origin_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="IM_WEB_ORIGINS"):
        WebSettings.from_env({"IM_WEB_ORIGINS": f"https://fine.example {text}"})


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        (None, "chat.example.org", True),
        ("https://chat.example.org", "chat.example.org", True),
        ("https://chat.example.org:443", "chat.example.org", True),
        ("https://chat.example.org", "chat.example.org:443", True),
        ("HTTPS://Chat.Example.org", "chat.example.org", True),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("https://chat.example.org:8443", "chat.example.org", False),
        ("https://evil.example", "chat.example.org", False),
        ("https://chat.example.org.evil.example", "chat.example.org", False),
        ("https://evilchat.example.org", "chat.example.org", False),
        ("null", "chat.example.org", False),
        ("null", "null", False),
        ("", "", False),
        ("file://", "", False),
        ("https://a.example", "chat.example.org", True),
        ("https://b.example:8443", "chat.example.org", True),
        ("https://b.example", "chat.example.org", False),
        ("http://a.example", "chat.example.org", False),
    ],
)
def test_pages_of_this_host_and_named_ones_may_connect(origin: str | None, host: str, expected: bool) -> None:
    settings = web_settings(origins="https://a.example, https://b.example:8443")
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert origin_is_allowed(headers, settings) is expected
