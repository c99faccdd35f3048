"""The command line and the environment of a worker process: the command line does not import `imcore.workers`."""

import os
import sys
from collections.abc import Mapping

from imcore.settings import Settings

NAMES = ("persist", "receipts", "jobs")


def command_of(name: str, *arguments: str) -> list[str]:
    """Return the command line of a worker. `-P`: a folder `imcore` in the working directory is not ours."""
    return [sys.executable, "-P", "-m", "imcore.workers", name, *arguments]


def environment_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `environment` with these settings for a worker."""
    return {
        **environment,
        "IM_DATA_DIR": str(settings.data_dir),
        "IM_REDIS_URL": settings.redis_url,
        "IM_DATABASE_URL": settings.database_url,
        "IM_JOBS_REDIS_URL": settings.jobs_redis_url,
        "PYTHONUNBUFFERED": "1",
    }
