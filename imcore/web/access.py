"""Who may connect, and who may do what: the two questions that `app(authenticate=..., may=...)` answers otherwise."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from imcore.errors import NotAllowed
from imcore.web.auth import Identity, Tokens, bearer_of
from imcore.web.method import METHODS
from imcore.web.settings import WebSettings

Authenticate = Callable[[str | None, Mapping[str, str]], "Identity | Awaitable[Identity | None] | None"]
"""Takes a token, if one came, and the headers, with names in lower case; returns who that is, None for nobody."""

May = Callable[[Identity, str, Mapping[str, Any]], "bool | Awaitable[bool]"]
"""Takes who calls, the method and its parameters; returns whether this is allowed."""

DEMO_TTL_S = 3600


def default_may(identity: Identity, method: str, params: Mapping[str, Any]) -> bool:
    """A server may all. A user may not change groups, nor speak for others."""
    if identity.is_server:
        return True
    known = METHODS.get(method)
    if known and known.is_demo_only:  # it looks itself for whom the token is
        return True
    is_for_servers = known is not None and known.is_server_only
    return not is_for_servers and params.get("uid") in (None, identity.uid)


class Access:
    """Checks tokens and permissions. For the loop's thread."""

    def __init__(self, settings: WebSettings, authenticate: Authenticate | None, may: May | None) -> None:
        """Raise ConfigurationError without `authenticate` and without a key in the settings."""
        self._tokens = None if authenticate else Tokens(settings)
        self._authenticate = authenticate
        self._may = may or default_may

    @property
    def is_default(self) -> bool:
        """Whether nothing has to be asked about what a user does for themselves."""
        return self._may is default_may

    def reads_headers(self, headers: Mapping[str, str]) -> bool:
        """Return whether the headers of a handshake may say who that is."""
        return self._authenticate is not None or bearer_of(headers) is not None

    async def authenticate(self, token: str | None, headers: Mapping[str, str]) -> Identity | None:
        """Return who a token names, None without one. Raise NotAuthenticated for a bad one."""
        token = token or bearer_of(headers)
        if self._tokens:
            return None if token is None else self._tokens.identity(token)
        answer = self._authenticate(token, headers) if self._authenticate else None
        return await answer if inspect.isawaitable(answer) else answer

    async def permit(self, identity: Identity, method: str, params: Mapping[str, Any]) -> None:
        """Raise NotAllowed unless this is allowed."""
        answer = self._may(identity, method, params)
        if not (await answer if inspect.isawaitable(answer) else answer):
            whom = f" for {params['uid']!r}" if isinstance(params.get("uid"), str) else ""
            raise NotAllowed(f"the token of {identity.uid!r} does not allow `{method}`{whom}")

    def demo_token(self, uid: str, users: list[str]) -> str:
        """Return a token for a user of the demo."""
        if self._tokens is None:
            raise NotAllowed("tokens are made elsewhere")
        return self._tokens.issue(uid, DEMO_TTL_S, demo=users)
