"""What this process has loaded of the repository, and under which names."""

import sys
from collections import defaultdict
from pathlib import Path

from tests.house.sources import ROOT

TAKEN = ("cli", "workers")
"""Folders of the repository whose names belong to its user's packages: ours are `imcore.cli` and `imcore.workers`."""


def second_names() -> list[str]:
    """Return the names of modules that were loaded under several names, or under one that is not theirs."""
    names = defaultdict(set)
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "/").resolve()
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and name != "__main__":
            names[path].add(name)
    several = {name for module_names in names.values() if len(module_names) > 1 for name in module_names}
    return sorted(several | {name for name in sys.modules if name.split(".")[0] in TAKEN})
