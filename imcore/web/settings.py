"""The settings of the network side: one frozen value, read from `IM_WEB_*`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from imcore.errors import ConfigurationError
from imcore.settings import whole_number

_PREFIX = "IM_WEB_"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """Keys, origins and limits. Make it with `WebSettings.from_env`."""

    key: str = field(default="", repr=False)
    """The secret that tokens are signed with (HS256)."""
    public_key: str = ""
    """The public key of who signs the tokens, as PEM (RS256, ES256 or EdDSA)."""
    origins: frozenset[str] = frozenset()
    """Pages of other hosts that may connect, as `https://chat.example.org`."""
    handshake_ms: int = 10_000
    """How long a client may take to say who it is, and to send the head of a request."""
    max_frame_bytes: int = 262_144
    """The size of what a client sends at once: a frame, or the body of a request."""
    max_buffered_bytes: int = 8_388_608
    """What is held for a socket that does not take it. A page of missed texts has at most a tenth of that."""
    patience_ms: int = 30_000
    """How long a socket may take nothing."""
    calls_per_s: int = 200
    calls_burst: int = 2000
    user_sockets: int = 20
    max_sockets: int = 20_000

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "WebSettings":
        """Read the environment; an empty text means the default. Raise ConfigurationError for an impossible value."""
        environ = os.environ if environ is None else environ
        given = {f.name: environ.get(f"{_PREFIX}{f.name.upper()}", "") for f in fields(cls)}
        return cls(
            key=given.pop("key"),
            public_key=_pem(given.pop("public_key")),
            origins=frozenset(map(_origin, given.pop("origins").replace(",", " ").split())),
            **{name: whole_number(f"{_PREFIX}{name.upper()}", text) for name, text in given.items() if text},
        )


def origin_is_allowed(headers: Mapping[str, str], settings: WebSettings) -> bool:
    """Return whether a request may come from the page that it comes from: one of this host, or of IM_WEB_ORIGINS.

    Programs send no Origin. Names of headers are in lower case.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    origin = same_origin(origin)
    scheme = origin.partition("://")[0]
    host = headers.get("host", "")
    return (bool(host) and origin == same_origin(f"{scheme}://{host}")) or origin in settings.origins


def same_origin(origin: str) -> str:
    """Return an origin in the one spelling that is compared: in lower case, without a port that goes without saying."""
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition(":")[0], "\0"))


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in _DEFAULT_PORTS or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}":
        raise ConfigurationError(
            f"IM_WEB_ORIGINS are separated by blanks and look like https://chat.example.org; one is {text!r}"
        )
    return same_origin(text)


def _pem(text: str) -> str:
    """Return the PEM itself where a path is given."""
    if not text or text.lstrip().startswith("-----BEGIN"):
        return text
    try:
        return Path(text).read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"IM_WEB_PUBLIC_KEY is neither PEM nor a file that can be read: {error}") from error
