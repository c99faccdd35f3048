"""How a worker is started: as a process of its own, since the command line does not import `workers`."""

import os
import sys
from collections.abc import Mapping

from imcore.settings import Settings

NAMES = ("persist", "receipts", "jobs")


def command_of(name: str, *arguments: str) -> list[str]:
    """Return the command line of a worker. `-P`: a folder named `workers` where we happen to stand is not ours."""
    return [sys.executable, "-P", "-m", "imcore.workers", name, *arguments]


def environment_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment that gives a worker these settings; the others are those of `environment`."""
    return {
        **environment,
        "IM_DATA_DIR": str(settings.data_dir),
        "IM_REDIS_URL": settings.redis_url,
        "IM_DATABASE_URL": settings.database_url,
        "IM_JOBS_REDIS_URL": settings.jobs_redis_url,
        "PYTHONUNBUFFERED": "1",
    }
