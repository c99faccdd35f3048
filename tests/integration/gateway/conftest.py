"""Fixtures of the tests of gateways: each runs on one server and on a cluster."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.async_driver import AsyncDriver
from tests.helpers.gateways import Clock


@pytest.fixture(params=["valkey", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    url: str = request.getfixturevalue(request.param)
    yield url
    if request.param == "cluster":
        gc.collect()  # while the filter below holds


@pytest.fixture(params=["synchronous", "asyncio"], autouse=True)
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which driver the gateways and listeners of all chats have."""
    kind: str = request.param
    if kind == "synchronous":
        yield kind
        return
    asynchronous = AsyncDriver()
    asynchronous.take_over(monkeypatch)
    yield kind
    asynchronous.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of gateways that are opened from now on."""
    return Clock(monkeypatch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The driver forgets sockets of a cluster's nodes when one of them has failed."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))
