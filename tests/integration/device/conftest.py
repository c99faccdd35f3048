"""Fixtures of the tests of devices: bob has one, with a local database."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.settings import Settings


@pytest.fixture
def settings(valkey: str, tmp_path: Path) -> Settings:
    return replace(Settings.from_env({}, redis_url=valkey, data_dir=str(tmp_path)), receipt_window_ms=0, block_ms=10)


@pytest.fixture
def chat(settings: Settings) -> Iterator[Chat]:
    with Chat.connect(settings=settings) as chat:
        yield chat


@pytest.fixture
def other(settings: Settings) -> Iterator[Chat]:
    """Another process's connection."""
    with Chat.connect(settings=settings) as chat:
        yield chat


@pytest.fixture
def local(settings: Settings) -> Iterator[LocalDatabase]:
    with LocalDatabase(path_of(settings.data_dir, "bob"), "bob", exclusive=True) as local:
        yield local


@pytest.fixture
def bob(chat: Chat, local: LocalDatabase) -> Device:
    return Device(chat, "bob", local)
