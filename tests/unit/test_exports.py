"""What `imcore` offers by name: all of it is there, and none of it is loaded before somebody asks."""

import subprocess
import sys

import pytest

import imcore


@pytest.mark.parametrize("name", imcore.__all__)
def test_every_name_can_be_imported(name: str) -> None:
    found = getattr(imcore, name)

    assert found is imcore.errors if name == "errors" else name in (getattr(found, "__name__", ""), "Event")


def test_what_is_no_name_is_said_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Chatter'"):
        _ = imcore.Chatter


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = "import sys, imcore; print([name for name in ('redis', 'sqlalchemy', 'imcore.chat') if name in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
