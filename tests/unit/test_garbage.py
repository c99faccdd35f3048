"""How often Python looks for cycles during a long job."""

import gc

import pytest

from imcore.util.garbage import collected_rarely


def test_the_thresholds_come_back_after_an_error() -> None:
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), collected_rarely():
        _ = 1 // (gc.get_threshold() == before or 0)
    assert gc.get_threshold() == before
