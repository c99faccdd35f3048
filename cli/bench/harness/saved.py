"""Saved runs: the figures, and the machine that they were measured on."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from imcore.cli.bench.harness.figures import Figure, RoundPlan, to_record
from imcore.cli.bench.harness.nodes import infos
from imcore.cli.bench.harness.servers import BenchServers
from imcore.errors import ImError, InvalidInput
from imcore.model.records import iso

FORMAT = 1
_PACKAGES = ("imcore", "redis", "hiredis", "psycopg", "sqlalchemy")
_CPU = Path("/proc/cpuinfo")

Machine = dict[str, Any]


def machine(servers: BenchServers) -> Machine:
    """Return the versions, the processor and the date of a run."""
    with servers.chat() as chat:
        info, *others = infos(chat, "server")
    valkey = info.get("valkey_version")
    return {
        "date": iso(datetime.now(UTC)),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "redis": (f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version')}")
        + (f" (cluster of {1 + len(others)})" if others else ""),
        "databases": [maker.version() for maker in servers.databases],
    }


def caption(about: Machine, plan: RoundPlan) -> str:
    """Return the machine in one line."""
    where = ", ".join(about["databases"])
    quick = ", --quick" if plan.quick else ""
    return f"{about['cpu']}, {about['cores']} cores, {about['redis']}, {where}, {about['date'][:10]}{quick}"


def check_writable(path: Path) -> None:
    """Raise InvalidInput if a file cannot be written there. A benchmark of minutes must not fail at its end."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidInput(f"{path} cannot be written: give a file in a folder that is there, and yours")


def save(path: Path, about: Machine, plan: RoundPlan, figures: Sequence[Figure]) -> None:
    """Write a run. Raise ImError if that fails."""
    record = {
        "format": FORMAT,
        "machine": about,
        "rounds": plan.rounds,
        "quick": plan.quick,
        "figures": [to_record(figure) for figure in figures],
    }
    write(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file. Raise ImError if that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ImError(f"{path} cannot be written: {error.strerror}") from error


def load(path: Path) -> dict[tuple[str, str], float]:
    """Return the medians of a saved run, by benchmark and figure. Raise InvalidInput if the file is not a saved run."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise InvalidInput(f"{path} is of format {record['format']}, which this program does not know")
        return {(figure["bench"], figure["figure"]): float(figure["median"]) for figure in record["figures"]}
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is not a run that `im bench --out` has saved") from error


def _cpu() -> str:
    lines = _CPU.read_text(encoding="utf-8", errors="replace").splitlines() if _CPU.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
