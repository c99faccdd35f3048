"""Fixtures that several kinds of tests use: real servers, empty at the start of each test."""

import gc
import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.helpers import apt
from tests.helpers.servers import RunningCluster, RunningServer, require_server, start_cluster, start_valkey
from tests.house.loaded import second_names

# A shared machine is slow now and then: that is no fault of the code.
hypothesis.settings.register_profile("imcore", deadline=None, print_blob=True)
hypothesis.settings.load_profile("imcore")


def pytest_collection_finish() -> None:
    """Let no garbage collection look at the thousands of tests themselves: that would take up to a second each time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that this machine cannot run."""
    if missing := apt.missing():
        tests = ", ".join(f"{program.tests} (apt-get install {program.package})" for program in missing)
        terminalreporter.write_line(f"not run here: {tests}")


@pytest.fixture(scope="session", autouse=True)
def _signals_reach_programs() -> None:
    """A program inherits what its parent ignores, as under nohup; what its parent handles, it gets as usual."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _modules_have_one_name() -> Iterator[None]:
    """Nothing loads `imcore.cli` as `cli` too, or `imcore.workers` as `workers`: there would be two of each class."""
    yield
    assert second_names() == []


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the servers or the data of the person who runs it."""
    for name in [name for name in os.environ if name.startswith("IM_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests, which keeps nothing on disk."""
    require_server()
    server = start_valkey(tmp_path_factory.mktemp("valkey"), appendonly=False)
    yield server
    server.stop()


@pytest.fixture
def valkey(valkey_server: RunningServer) -> str:
    """The URL of an empty server."""
    valkey_server.flush()
    return valkey_server.url


@pytest.fixture(scope="session")
def cluster_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """One cluster of three nodes for all tests."""
    require_server()
    cluster = start_cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(cluster_servers: RunningCluster) -> str:
    """The URL of an empty cluster."""
    cluster_servers.flush()
    return cluster_servers.url
