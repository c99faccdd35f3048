"""What `imcore` offers by name: all of it is there, and none of it is loaded before somebody asks."""

import subprocess
import sys

import pytest

import imcore


@pytest.mark.parametrize("name", imcore.__all__)
def test_every_exported_name_can_be_imported(name: str) -> None:
    exported = getattr(imcore, name)

    assert getattr(exported, "__name__", "Event").removeprefix("imcore.") == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Chatter'"):
        _ = imcore.Chatter


def test_no_module_is_loaded_before_its_name_is_used() -> None:
    assert not loaded_by("imcore") & {"redis", "sqlalchemy", "imcore.chat"}


def test_the_core_of_a_gateway_loads_no_module_that_does_io() -> None:
    assert not loaded_by("imcore.gateway.core") & {"redis", "hiredis", "sqlalchemy", "socket", "select", "asyncio"}


def loaded_by(module: str) -> set[str]:
    """What is loaded once a module is."""
    code = f"import sys, {module}; print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())
