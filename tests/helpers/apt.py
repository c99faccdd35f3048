"""Programs that some tests need and pip cannot bring: `apt-get install` does, and `.ci/run` asks for it.

Where one is missing its tests are not collected, and the end of the run names them in one line.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """A program or library of a Debian package, and the tests that need it: a pattern of names of files."""

    package: str
    tests: str
    name: str
    """Its name on PATH, or a pattern of its path below the root folder."""
    other_names: tuple[str, ...] = ()

    @cached_property
    def path(self) -> Path | None:
        """Where it is; None if it is not here."""
        return next(filter(None, map(_path_of, (self.name, *self.other_names))), None)

    @property
    def needed(self) -> Path:
        """Where it is, for a test that is not collected without it."""
        assert self.path is not None, f"apt-get install {self.package}"
        return self.path


def _path_of(name: str) -> Path | None:
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return Path(program) if program else next(Path("/").glob(name), None)


PGBOUNCER = Program("pgbouncer", "test_pgbouncer.py", "pgbouncer")
FAKETIME = Program("faketime", "test_clock.py", "usr/lib/*/faketime/libfaketimeMT.so.1")
CHROMIUM = Program(
    "chromium",
    "test_page_*.py",
    "chromium-headless-shell",  # without its windows it takes a third of the time
    ("chromium", "google-chrome", "chromium-browser"),
)
PROGRAMS = (PGBOUNCER, FAKETIME, CHROMIUM)


def missing() -> list[Program]:
    """Return the programs that are not here."""
    return [program for program in PROGRAMS if program.path is None]
