"""Fixtures of the tests of `im serve`: one server of each kind for the tests of a file, and groups of their own."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from imcore import Chat
from imcore.settings import Settings
from tests.helpers.servers import RunningServer, require_server, start_valkey
from tests.helpers.web_server import WebServer

_NUMBERS = count(1)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    require_server()
    server = start_valkey(tmp_path_factory.mktemp("redis"), appendonly=False)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def chat(redis: RunningServer, folder: Path) -> Iterator[Chat]:
    """What the server has, from the side."""
    with Chat.connect(settings=Settings.from_env({}, redis_url=redis.url, data_dir=str(folder))) as chat:
        chat.system.client.upgrade()
        chat.system.database.upgrade()
        yield chat


@pytest.fixture(scope="module")
def web(redis: RunningServer, folder: Path, chat: Chat) -> Iterator[WebServer]:
    with WebServer(folder, redis.url) as server:
        yield server


@pytest.fixture
def gid(chat: Chat) -> str:
    """A group of ann and bob that no other test has."""
    gid = f"team{next(_NUMBERS)}"
    chat.create_group(gid, ["ann", "bob"])
    return gid


@pytest.fixture
def say(chat: Chat, gid: str) -> Callable[..., list[str]]:
    """Send texts to the group, as bob; return the msgids."""
    return lambda *texts: [chat.send(gid, text, sender_uid="bob").msgid for text in texts]
