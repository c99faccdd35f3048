"""Programs that some tests need and pip cannot bring: `apt-get install` does, and `.ci/run` asks for it.

Where one is missing its tests are not collected, and the end of the run names them in one line.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """A program or library of a Debian package, and the file of tests/integration that needs it."""

    package: str
    tests: str
    name: str
    """Its name on PATH, or a pattern of its path below the root folder."""

    @cached_property
    def path(self) -> Path | None:
        """Where it is; None if it is not here."""
        program = shutil.which(self.name) or shutil.which(self.name, path="/usr/sbin:/usr/local/sbin")
        return Path(program) if program else next(Path("/").glob(self.name), None)

    @property
    def needed(self) -> Path:
        """Where it is, for a test that is not collected without it."""
        assert self.path is not None, f"apt-get install {self.package}"
        return self.path


PGBOUNCER = Program("pgbouncer", "test_pgbouncer.py", "pgbouncer")
FAKETIME = Program("faketime", "test_clock.py", "usr/lib/*/faketime/libfaketimeMT.so.1")
PROGRAMS = (PGBOUNCER, FAKETIME)


def missing() -> list[Program]:
    """Return the programs that are not here."""
    return [program for program in PROGRAMS if program.path is None]
