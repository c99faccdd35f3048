"""Commands of `im` that run inside the test's process."""

import json
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest
from click.testing import CliRunner, Result

from imcore.chat import Chat
from imcore.cli.app import Invocation, app
from imcore.settings import Settings
from imcore.streams.client import RedisClient
from imcore.system import System


def connected_chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chat]:
    """Yield a Chat where a worker has been, which every command gets; local databases are in the test's folder."""
    monkeypatch.setenv("IM_DATA_DIR", str(tmp_path))
    settings = Settings.from_env({}, data_dir=str(tmp_path))
    server = fakeredis.FakeServer()

    def connect(_: Invocation | None = None) -> System:
        return System(RedisClient(fakeredis.FakeRedis(server=server)), None, settings)

    monkeypatch.setattr(Invocation, "connect", connect)
    with Chat(connect()) as chat:
        chat.system.client.upgrade()
        yield chat


def let_commands_use(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command use this system."""
    monkeypatch.setattr(Invocation, "connect", lambda *_: system)


def im(*args: str, stdin: str | bytes | None = None) -> Result:
    """Run a command; an error that no command expects is raised."""
    return CliRunner().invoke(app, args, input=stdin, catch_exceptions=False)


def lines(*args: str, stdin: str | bytes | None = None) -> list[dict[str, object]]:
    result = im("--json", *args, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(*args: str, stdin: str | bytes | None = None) -> str:
    result = im(*args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("im: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("im: ").strip()
