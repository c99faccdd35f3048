"""Takes secrets out of a text that people or collectors of logs will read: passwords of URLs, and tokens."""

import re
from urllib.parse import unquote_plus

from imcore.sql.postgres_options import OPTIONS as POSTGRES_OPTIONS
from imcore.streams.url_options import OPTIONS as REDIS_OPTIONS

_IS_SECRET: dict[str, bool] = {
    **{name: option.is_secret for name, option in POSTGRES_OPTIONS.items()},
    **{name: option.is_secret for name, option in REDIS_OPTIONS.items()},
}
_BEHIND_USER = re.compile(r"(?<=://)([^\s/:@]*):(\S*)@(\S*)")
_OPTION = re.compile(r"(?:[?&;]|%3F|%26|%3B)([^\s?&;=]+)=(?=([^&\s]*))", re.IGNORECASE)
_TOKEN = re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*|(?i:(?<=\bbearer ))[\w.~+/=-]{16,}")
"""A JSON Web Token, wherever it is, and what follows `Bearer` in a header."""
_HIDDEN = "***"


def redact(text: str) -> str:
    """Return `text` with `***` for the password of each URL in it, for each secret option, and for each token."""
    return _TOKEN.sub(_HIDDEN, _without_secret_options(_BEHIND_USER.sub(_without_password, text)))


def has_password(url: str) -> bool:
    """Return whether a URL may have a password in it, which may contain blanks and @."""
    user_and_password = (url.partition("://")[2] or url).rpartition("@")[0]
    return ":" in user_and_password or any(_is_secret(option[1]) for option in _OPTION.finditer(url))


def _without_password(match: re.Match[str]) -> str:
    user, password, rest = match.groups()
    if any(_is_secret(option[1]) for option in _OPTION.finditer(password)):
        return f"{user}:{_HIDDEN}"  # the @ may be a part of the option: the rest is secret, too
    return f"{user}:{_HIDDEN}@{rest}"


def _without_secret_options(text: str) -> str:
    shown, at = "", 0
    for option in _OPTION.finditer(text):
        if option.start() >= at and _is_secret(option[1]):
            shown += text[at : option.end()] + _HIDDEN
            at = option.end(2)
    return shown + text[at:]


def _is_secret(name: str) -> bool:
    """Return whether an option is secret, in any spelling of its name. An unknown one may be."""
    known = re.split("[?&;]", unquote_plus(name))[-1].strip().lower()
    return _IS_SECRET.get(known, "pass" in known)
