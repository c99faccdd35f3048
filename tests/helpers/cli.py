"""Commands of `im` that run inside the test's process."""

import pytest
from click.testing import CliRunner, Result

from imcore import Chat
from imcore.cli.app import app
from imcore.cli.options import Invocation
from imcore.system import System


def im(*args: str, stdin: str | bytes | None = None) -> Result:
    """Run a command; an error that no command expects is raised."""
    return CliRunner().invoke(app, args, input=stdin, catch_exceptions=False)


def let_commands_use(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every command a Chat of its own on this system."""
    monkeypatch.setattr(Invocation, "chat", lambda *_: Chat(system))
