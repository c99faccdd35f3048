"""How many random histories are played, and how.

`IM_MODEL_EXAMPLES` and `IM_FUZZ_EXAMPLES` ask for another number; then each run plays other histories.
"""

import os

from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings

# Read here, because the tests themselves see no setting.
HISTORIES_WANTED = os.environ.get("IM_MODEL_EXAMPLES")
CALLS_WANTED = os.environ.get("IM_FUZZ_EXAMPLES")

PARTITIONS = 2
"""Few, so that groups meet in one."""


def played(examples: int) -> hypothesis_settings:
    """The settings of a run of this many histories, unless the environment names another number."""
    return _settings(examples, HISTORIES_WANTED)


def fuzzed(examples: int) -> hypothesis_settings:
    """The settings of a run of this many random calls, unless the environment names another number."""
    return _settings(examples, CALLS_WANTED)


def _settings(examples: int, long_form: str | None) -> hypothesis_settings:
    # At home an example that fails is made as short as can be, which may take five minutes
    return hypothesis_settings(
        phases=[Phase.generate] if os.environ.get("CI") else [Phase.generate, Phase.shrink],
        max_examples=int(long_form or examples),
        stateful_step_count=40,
        derandomize=long_form is None,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
