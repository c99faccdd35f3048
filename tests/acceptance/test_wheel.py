"""The built wheel puts nothing but `imcore` into site-packages, and works beside other people's `cli` and `workers`."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from imcore.workers import jobs
from tests.house.sources import ROOT, files

NOT_OURS = "raise RuntimeError('this package is not imcore\\'s')\n"

LIMIT_S = 60

Ended = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and borrows its dependencies from this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Somebody's repository that has packages called `workers`, `cli` and `tests`, and another `cli` on PYTHONPATH."""
    for name in ("own/workers", "own/cli", "own/tests", "path/cli", "path/workers"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(NOT_OURS)
    return tmp_path / "own"


def test_wheel_has_the_product_and_nothing_beside_it(wheel: Path) -> None:
    product = {str(path.relative_to(ROOT)) for path in files("imcore", ".py", ".lua", ".typed", ".md", ".html", ".js")}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == product
    assert {"imcore/py.typed", "imcore/cli/main.py", "imcore/workers/jobs.py"} <= packed


def test_wheel_of_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    # Given a source distribution, unpacked
    with tarfile.open(built("sdist", ROOT, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [source] = (tmp_path / "unpacked").iterdir()

    # When a wheel is built from it
    again = built("wheel", source, tmp_path)

    # Then it is the wheel of the tree, byte for byte
    assert contents(again) == contents(wheel)


def test_installed_package_is_ours_among_packages_of_the_same_names(
    python: Path, folder: Path, tmp_path: Path, valkey: str
) -> None:
    # Given all names of the repository's folders taken, here and on PYTHONPATH
    environment = {
        "IM_DATA_DIR": str(tmp_path / "data"),
        "IM_REDIS_URL": valkey,
        "PYTHONPATH": str(tmp_path / "path"),
    }
    im = python.parent / "im"

    def ran(*command: str | Path) -> Ended:
        return run(*command, cwd=folder, **environment)

    # When the commands and the Procfile's programs run there
    assert "im send" in ran(im, "send", "--help").stdout
    ran(im, "db", "upgrade")
    ran(im, "group", "create", "team", "ann", "bob")
    ran(im, "send", "team", "hello", "--from", "ann")
    with Redis.from_url(valkey) as connection:
        jobs.queue(connection).enqueue(jobs.TRIM)
    *workers, web = procfile_programs()
    log = [ran(python, *program, "--burst").stderr for program in workers]

    # Then both stores have the message, and rq has found a job by its dotted name
    assert "hello" in ran(im, "pull", "bob").stdout
    assert "no difference" in ran(im, "check").stderr
    assert "INFO jobs: trimmed " in log[-1]
    assert "--port" in ran(python, *web, "--help").stdout


def test_installed_package_is_loaded_from_the_environment(python: Path, folder: Path) -> None:
    program = "import imcore.cli.app, imcore.workers.jobs as jobs; print(jobs.__file__)"
    place = run(python, "-c", program, cwd=folder).stdout
    assert place.startswith(f"{python.parents[1]}/")


@pytest.mark.parametrize("module", ["imcore.cli.main", "imcore.workers"])
def test_tree_of_an_editable_install_is_ours_among_packages_of_the_same_names(
    folder: Path, tmp_path: Path, module: str
) -> None:
    path = os.pathsep.join(map(str, (tmp_path / "path", ROOT)))
    assert run(sys.executable, "-m", module, "--help", cwd=folder, PYTHONPATH=path).stdout


def built(kind: str, source: Path, folder: Path) -> Path:
    """Build a `wheel` or an `sdist` as pip does, without a network; return its path."""
    program = f"import hatchling.build as build, sys; print(build.build_{kind}(sys.argv[1]))"
    name = run(sys.executable, "-c", program, folder, cwd=source).stdout.splitlines()[-1]
    return folder / name


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def procfile_programs() -> Iterator[list[str]]:
    """Yield the arguments that each line of the Procfile gives to Python."""
    for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines():
        python, *arguments = line.split(": ", 1)[1].split()
        assert python == "python"
        yield arguments


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> Ended:
    """Run a program that has to succeed."""
    answer = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer
