"""Fixtures of the tests of devices: bob has one, with a local database."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from imcore import Chat
from imcore.device.device import Device
from imcore.device.local_database import LocalDatabase, path_of
from imcore.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, receipt_window_ms=0, block_ms=10)


@pytest.fixture
def local(settings: Settings) -> Iterator[LocalDatabase]:
    with LocalDatabase(path_of(settings.data_dir, "bob"), "bob", exclusive=True) as local:
        yield local


@pytest.fixture
def bob(chat: Chat, local: LocalDatabase) -> Device:
    return Device(chat, "bob", local)
