"""`im up --web`: the gateway beside the workers, with a link that works once it is printed."""

import http.client
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from imcore.cli.foreground import TextLog
from imcore.errors import GroupExists

if TYPE_CHECKING:
    from imcore.system import System

USERS = ("ann", "bob")
"""The users of the demo."""
GID = "demo"
_TEXTS = (
    ("bob", "Hi Ann! This is a demo of imcore."),
    ("bob", "Open the list of conversations, and me from there, in a second tab. Each message shows who has read it."),
    ("ann", "And what I write while I am offline goes out once I am back."),
)
_TOKEN_S = 600
_HOST = "127.0.0.1"
_ANSWER_S = 0.3


class WebProcess:
    """The options of the web process, and the link to its page.

    Without a key in the environment the process is a demo: it makes a key of its own.
    """

    def __init__(self, port: int, environ: Mapping[str, str] = os.environ) -> None:
        self._port = port
        self.is_demo = not (environ.get("IM_WEB_KEY") or environ.get("IM_WEB_PUBLIC_KEY"))
        self.environment = {"IM_WEB_KEY": secrets.token_urlsafe(32)} if self.is_demo else {}
        self._was_shown = False

    @property
    def arguments(self) -> list[str]:
        return ["--host", _HOST, "--port", str(self._port), *["--demo"] * self.is_demo]

    def check_port(self) -> None:
        """Raise ConfigurationError if the port cannot be had: before a link to somebody else's page is printed."""
        from imcore.web.serve import ServeOptions, listening  # noqa: PLC0415 (the extra may be missing)

        listening(ServeOptions(host=_HOST, port=self._port)).close()

    def prepare(self, system: "System") -> None:
        """Make the group of the demo, with something said in it, unless it is there."""
        if self.is_demo:
            from imcore.chat import Chat  # noqa: PLC0415 (the help need not wait for the drivers)

            chat = Chat(system)
            with suppress(GroupExists):  # somebody has changed it
                if chat.create_group(GID, USERS).messages == 0:
                    for sender_uid, text in _TEXTS:
                        chat.send(GID, text, sender_uid=sender_uid)

    def step(self, log: TextLog) -> None:
        """Print the link once the gateway answers."""
        if not self._was_shown and self._answers():
            self._was_shown = True
            log.record({"event": "serving", "url": self._url()})
            log.info(f"the page is at {self._url()}")
            if self.is_demo:
                lasts = f"the link can be opened for {_TOKEN_S // 60} minutes, and what is open goes on"
                log.info(f"it is a demo for {' and '.join(USERS)}: {lasts}")

    def _url(self) -> str:
        url = f"http://{_HOST}:{self._port}/"
        if not self.is_demo:
            return url
        from imcore.web.auth import Tokens  # noqa: PLC0415 (the extra may be missing)
        from imcore.web.settings import WebSettings  # noqa: PLC0415 (as above)

        tokens = Tokens(WebSettings.from_env(self.environment))
        return f"{url}#token={tokens.issue(USERS[0], _TOKEN_S, demo=list(USERS))}"

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=_ANSWER_S)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
