"""Outputs that nobody reads, or that no disk has room for: lost logs change nothing, lost records are not confirmed."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from imcore.chat import Chat
from imcore.errors import ImError
from imcore.model.values import Draft
from imcore.settings import Settings, socket_path, socket_url
from tests.helpers.deadline import wait_until
from tests.helpers.outputs import (
    FAILING,
    PIPE_BYTES,
    STANDING,
    Output,
    bytes_in,
    disk_full,
    nobody_reads,
    reader_gone,
    stuck_pipe,
)
from tests.helpers.servers import require_server

END_S = 30

KINDS = [*STANDING, *FAILING]


class Im:
    """`im` on a data directory of its own, and on a server that was given, or the embedded one."""

    def __init__(self, data_dir: Path, redis_url: str | None = None) -> None:
        self.redis_url = redis_url or socket_url(socket_path(data_dir))
        self.environment = {
            **os.environ,
            **({"IM_REDIS_URL": redis_url} if redis_url else {}),
            "IM_DATA_DIR": str(data_dir),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.chat = Chat.connect(settings=Settings.from_env({}, redis_url=self.redis_url, data_dir=str(data_dir)))

    @contextmanager
    def started(self, *args: str, shell: str = ":", **outputs: int) -> Iterator["subprocess.Popen[bytes]"]:
        """A process of `im`, which is killed at the end if it still runs; the shell may prepare it."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **outputs}
        with subprocess.Popen(
            ["/bin/sh", "-c", f'{shell}; exec "$@"', "sh", sys.executable, "-m", "imcore.cli.main", *args],
            env=self.environment,
            **streams,  # type: ignore[call-overload]
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def code(self, *args: str, shell: str = ":", **outputs: int) -> int:
        """Run a command to its end; return the exit code."""
        with self.started(*args, shell=shell, **outputs) as process:
            return process.wait(END_S)

    def talk(self) -> None:
        """Make a group with a message, once the server is there."""

        def is_made() -> bool:
            try:
                self.chat.create_group("team", ["ann", "bob"])
            except ImError:
                return False
            return True

        wait_until(is_made, timeout_s=END_S)
        self.chat.send("team", "hi", sender_uid="ann")

    def is_working(self, worker: str) -> bool:
        """Whether a worker of a kind has begun; `jobs` is registered by rq."""
        with redis.Redis.from_url(self.redis_url) as client:
            return bool(client.scard("rq:workers") if worker == "jobs" else client.keys(f"im:lease:{worker}:*"))

    def is_stored(self) -> bool:
        """Whether `persist` has stored the message."""
        with self.chat.system.database.connection() as connection:
            return bool(connection.exec_driver_sql("SELECT COUNT(*) FROM group_msgs").scalar_one())

    def make_noise(self) -> None:
        """Let `persist` log more than a pipe holds."""
        with redis.Redis.from_url(self.redis_url) as client:
            for _ in range(100):
                client.xadd("im:{0}:journal", {"kind": "nonsense"})


@pytest.fixture
def im(valkey: str, tmp_path: Path) -> Iterator[Im]:
    im = Im(tmp_path, valkey)
    im.talk()
    yield im
    im.chat.close()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Im]:
    require_server()
    im = Im(tmp_path)
    yield im
    im.chat.close()


def ended(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGTERM) -> int:
    """Ask it to end; return the exit code."""
    process.send_signal(number)
    return process.wait(END_S)


# Logs and remarks.


@pytest.mark.parametrize(
    ("worker", "kind"),
    [*(("persist", kind) for kind in KINDS), ("receipts", nobody_reads), ("jobs", nobody_reads)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_worker_works_and_ends_in_order_whatever_becomes_of_its_log(im: Im, worker: str, kind: Output) -> None:
    im.make_noise()
    with kind() as log, im.started("worker", worker, stdout=log, stderr=log) as process:
        wait_until(lambda: im.is_working(worker), timeout_s=END_S)
        if worker == "persist":
            wait_until(im.is_stored, timeout_s=END_S)

        assert ended(process) == 0


@pytest.mark.parametrize("kind", [nobody_reads, disk_full], ids=lambda kind: kind.__name__)
def test_a_burst_ends_with_0_whatever_becomes_of_its_log(im: Im, kind: Output) -> None:
    with kind() as log:
        assert im.code("worker", "persist", "--burst", stderr=log) == 0


def test_workers_that_share_a_log_that_nobody_reads_end_in_order(im: Im) -> None:
    with (
        nobody_reads() as log,
        im.started("worker", "persist", stderr=log) as persist,
        im.started("worker", "receipts", stderr=log) as receipts,
    ):
        wait_until(lambda: im.is_working("persist") and im.is_working("receipts"), timeout_s=END_S)

        assert [ended(process, signal.SIGINT) for process in (persist, receipts)] == [0, 0]


@pytest.mark.parametrize("kind", [nobody_reads, reader_gone, disk_full], ids=lambda kind: kind.__name__)
def test_up_runs_on_and_ends_in_order_whatever_becomes_of_its_log(embedded: Im, kind: Output) -> None:
    with kind() as log, embedded.started("up", stdout=log, stderr=log) as up:
        embedded.talk()
        embedded.make_noise()
        wait_until(lambda: embedded.is_working("persist") and embedded.is_stored(), timeout_s=END_S)

        assert ended(up) == 0


def test_up_with_all_standard_descriptors_closed(embedded: Im) -> None:
    with embedded.started("up", shell="exec <&- >&- 2>&-") as up:
        embedded.talk()
        assert {os.readlink(f"/proc/{up.pid}/fd/{number}") for number in range(3)} == {os.devnull}

        assert ended(up) == 0


def test_up_ends_when_a_worker_has_ended_even_if_nobody_reads_that(im: Im) -> None:
    with nobody_reads() as log, im.started("up", stdout=log, stderr=log) as up:
        wait_until(lambda: im.is_working("persist"), timeout_s=END_S)
        workers = Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split()

        os.kill(int(workers[0]), signal.SIGKILL)

        assert up.wait(END_S) == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("args", "code"), [(("unread", "bob", "--local-time"), 0), (("ack", "nobody", "team"), 1), ((), 2)], ids=str
)
def test_no_remark_or_complaint_changes_how_a_command_ends(
    im: Im, args: tuple[str, ...], code: int, kind: Output
) -> None:
    im.environment["TZ"] = "Nowhere/City"  # which is remarked on
    with kind() as stderr:
        assert im.code(*args, stderr=stderr) == code


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_import_continues_when_its_errors_and_its_bar_cannot_be_written(
    im: Im, tmp_path: Path, kind: Output
) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text('{"type": "nothing"}\n' * 2000 + '{"type": "join", "gid": "team", "uid": "cleo"}\n')

    with kind() as stderr, im.started("--json", "import", str(file), stdout=subprocess.PIPE, stderr=stderr) as process:
        printed, _ = process.communicate(timeout=END_S)

    assert process.returncode == 1
    assert json.loads(printed) == {
        "messages": 0,
        "joins": 1,
        "leaves": 0,
        "acks": 0,
        "delivered": 0,
        "marks": 0,
        "recalls": 0,
        "errors": 2000,
    }


def test_an_interrupt_writes_nothing_to_stdout_where_stderr_is_closed(im: Im) -> None:
    events, ours = os.pipe()
    with im.started("import", "-", shell="exec 2>&-", stdin=events, stdout=subprocess.PIPE) as process:
        os.write(ours, b'{"type": "join", "gid": "begun", "uid": "ann"}\n' * 1000)
        wait_until(lambda: "begun" in {group.gid for group in im.chat.groups()}, timeout_s=END_S)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=END_S)
    os.close(events)
    os.close(ours)

    assert (process.returncode, printed) == (130, b"")


def test_destructive_commands_do_not_ask_if_the_question_is_invisible(im: Im) -> None:
    terminal, theirs = pty.openpty()
    os.write(terminal, b"y\n")

    with nobody_reads() as stderr:
        assert im.code("group", "remove", "team", "bob", stdin=theirs, stderr=stderr) == 1

    os.close(terminal)
    os.close(theirs)
    assert len(list(im.chat.members("team"))) == 2


# Records.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_up_whose_records_nobody_reads(embedded: Im, number: signal.Signals) -> None:
    with nobody_reads() as stdout, embedded.started("up", "--json", stdout=stdout, stderr=subprocess.PIPE) as up:
        embedded.talk()
        up.send_signal(number)
        _, said = up.communicate(timeout=END_S)

    assert up.returncode == 1
    assert said.splitlines()[-1] == b"im: the output could not be written: nobody reads it"


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["plain", "json"])
def test_pull_confirms_no_message_that_the_disk_took_in_part(
    im: Im, tmp_path: Path, unbuffered: str, as_json: tuple[str, ...]
) -> None:
    im.chat.send("team", "x" * 9000, sender_uid="ann")
    im.environment["PYTHONUNBUFFERED"] = unbuffered

    with (tmp_path / "printed").open("wb") as file:
        pull = ("pull", "bob", "--ack", "--no-local", *as_json)
        assert im.code(*pull, shell="ulimit -f 8", stdout=file.fileno()) == 1

    assert [group.unread for group in im.chat.unread("bob")] == [2]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_pull_waits_for_the_reader_of_a_pipe_that_others_made_non_blocking(im: Im, unbuffered: str) -> None:
    for _ in range(4):
        im.chat.send("team", "x" * 9000, sender_uid="ann")
    im.environment["PYTHONUNBUFFERED"] = unbuffered

    with stuck_pipe(room=PIPE_BYTES) as (stdout, reader):
        os.set_blocking(stdout, False)
        with im.started("pull", "bob", "--ack", "--json", stdout=stdout) as process:
            wait_until(lambda: bytes_in(reader), timeout_s=END_S)
            printed = bytearray()

            def has_ended() -> bool:
                printed.extend(os.read(reader, bytes_in(reader)))
                return process.poll() is not None and not bytes_in(reader)

            wait_until(has_ended, timeout_s=END_S)

    assert (process.returncode, printed.count(b"\n")) == (0, 5)
    assert [group.unread for group in im.chat.unread("bob")] == [0]


def test_a_dead_letter_is_not_dropped_after_one_that_could_not_be_shown(im: Im) -> None:
    # Given
    im.make_noise()
    im.environment |= {"IM_RETRY_MS": "1", "IM_MAX_DELIVERIES": "1"}
    assert im.code("worker", "persist", "--burst") == 0
    with im.started("dead", "list", "--json", stdout=subprocess.PIPE) as listing:
        ids = [json.loads(line)["id"] for line in listing.communicate(timeout=END_S)[0].splitlines()]
    # When
    with (
        disk_full() as stdout,
        im.started("dead", "drop", "--yes", *ids, stdout=stdout, stderr=subprocess.PIPE) as drop,
    ):
        _, said = drop.communicate(timeout=END_S)
    # Then
    assert drop.returncode == 1
    assert said.decode() == f"im: {ids[0]} is dropped, but the output could not be written: No space left on device\n"
    with im.started("dead", "list", "--json", stdout=subprocess.PIPE) as listing:
        assert len(listing.communicate(timeout=END_S)[0].splitlines()) == len(ids) - 1


@pytest.mark.parametrize("kind", FAILING, ids=lambda kind: kind.__name__)
def test_an_export_whose_output_fails_ends_with_1_and_one_line(im: Im, kind: Output) -> None:
    with kind() as stdout, im.started("export", "team", stdout=stdout, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=END_S)

    assert process.returncode == 1
    assert said.startswith(b"im: the output could not be written: ")
    assert said.count(b"\n") == 1


def test_an_interrupted_export_leaves_no_file(im: Im, tmp_path: Path) -> None:
    # Given more than it can write before it is interrupted
    for number in range(100):
        im.chat.send_many("team", [Draft("ann", "x" * 1000, f"{number} {each}") for each in range(100)])
    file, part = tmp_path / "team.jsonl", tmp_path / "team.jsonl.part"
    # When
    with im.started("export", "team", "--output", str(file), stderr=subprocess.PIPE) as process:
        wait_until(part.exists, timeout_s=END_S)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=END_S)
    # Then
    assert (process.returncode, said.strip()) == (130, b"im: interrupted")
    assert not file.exists()
    assert not part.exists()


def test_an_export_for_which_the_disk_has_no_room_leaves_no_file(im: Im, tmp_path: Path) -> None:
    im.chat.send("team", "x" * 20_000, sender_uid="ann")

    assert im.code("export", "team", "--output", str(tmp_path / "team.jsonl"), shell="ulimit -f 8") == 1
    assert not list(tmp_path.glob("team*"))
