"""Fixtures of the tests of gateways: each runs on one server and on a cluster."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.async_driver import AsyncDriver
from tests.helpers.gateways import Clock

ASYNCIO_ON_A_CLUSTER = {"test_lost_connections.py", "test_lost_servers.py", "test_membership.py", "test_opening.py"}
"""What depends on both the driver and the kind of server. IM_ALL_DRIVERS=1 tries all on each pair of the two."""


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    own = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    for item in own:  # the driver forgets sockets of a cluster's nodes when one of them has failed
        item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))
    if not os.environ.get("IM_ALL_DRIVERS"):
        left_out = list(filter(_is_tried_elsewhere, own))
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _is_tried_elsewhere(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec else {}
    on_both = params.get("driver") == "asyncio" and params.get("redis_url") == "cluster"
    return on_both and item.path.name not in ASYNCIO_ON_A_CLUSTER
