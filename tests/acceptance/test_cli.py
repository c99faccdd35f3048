"""`im` as a process: what the shell, the locale, pipes and signals do to it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers.deadline import wait_until

INTERRUPT_AGAIN_S = 3
HOSTILE = "\x1b[2J[red]eve[/red]\n\u202e{0} 群主 o'neil 👩\u200d💻 " + "x" * 3000


class Im:
    """Calls `im` on one server and one database."""

    def __init__(self, redis_url: str, data_dir: Path) -> None:
        self.environment = {
            **os.environ,
            "IM_REDIS_URL": redis_url,
            "IM_DATA_DIR": str(data_dir),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def command(self, *args: str | bytes) -> list[str | bytes]:
        return [sys.executable, "-m", "imcore.cli.main", *args]

    def run(
        self, *args: str | bytes, stdin: bytes | None = None, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*args),
            input=stdin,
            capture_output=True,
            env={**self.environment, **environment},
            check=False,
            timeout=60,
        )

    def json(self, *args: str, stdin: bytes | None = None) -> list[dict[str, object]]:
        result = self.run("--json", *args, stdin=stdin)
        assert (result.returncode, result.stderr) == (0, b"")
        return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def im(valkey: str, tmp_path: Path) -> Im:
    im = Im(valkey, tmp_path)
    im.json("group", "create", "team", "ann", "bob")
    return im


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1:strict"},
    ],
    ids=str,
)
def test_json_is_utf8_whatever_the_locale(im: Im, environment: dict[str, str]) -> None:
    sent = im.run("send", "team", HOSTILE, "--from", "ann", "--json", **environment)

    assert (sent.returncode, sent.stderr) == (0, b"")
    assert json.loads(sent.stdout.decode())["content"] == HOSTILE
    pulled = im.run("pull", "bob", "--json", **environment)
    assert pulled.stdout == sent.stdout.replace(b', "recipients": 1', b"")
    assert im.run("pull", "bob", **environment).stdout.decode().splitlines()[1].endswith("x" * 3000)


def test_an_argument_that_is_not_utf8_is_refused(im: Im) -> None:
    result = im.run("send", "team", b"\xff\xfe", "--from", "ann")

    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"im: argument 3 is not valid UTF-8\n"


def test_pull_confirms_nothing_when_its_output_cannot_be_written(im: Im) -> None:
    im.json("send", "team", "hi", "--from", "ann")

    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            im.command("pull", "bob", "--ack"), stdout=full, stderr=subprocess.PIPE, env=im.environment, check=False
        )

    assert result.returncode == 1
    assert result.stderr == b"im: the output could not be written: No space left on device\n"
    assert len(im.json("pull", "bob")) == 1


def test_pull_confirms_nothing_when_stdout_is_closed(im: Im) -> None:
    im.json("send", "team", "hi", "--from", "ann")

    result = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *im.command("pull", "bob", "--ack")],
        stderr=subprocess.PIPE,
        env=im.environment,
        check=False,
    )

    assert result.returncode == 1
    assert result.stderr == b"im: the output could not be written: stdout is closed\n"
    assert len(im.json("pull", "bob")) == 1


@pytest.mark.parametrize(
    "words", [("send", "team", "-", "--from", "ann"), ("dm", "bob", "-", "--from", "ann"), ("import", "-")]
)
def test_a_closed_stdin_is_one_line(im: Im, words: tuple[str, ...]) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *im.command(*words)], capture_output=True, env=im.environment, check=False
    )
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"im: stdin is closed: there is nothing to read\n"


def test_import_takes_each_line_as_it_comes(im: Im) -> None:
    with subprocess.Popen(
        im.command("import", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=im.environment
    ) as process:
        assert process.stdin
        for number in range(3):
            line = {"type": "message", "gid": "live", "uid": "ann", "content": "hi", "client_msgid": str(number)}
            process.stdin.write(json.dumps(line).encode() + b"\n")
            process.stdin.flush()
            wait_until(lambda number=number: im.run("status", "live").stdout.count(b"hi") == number + 1)
        summary, _ = process.communicate(timeout=30)
    assert (process.returncode, summary.splitlines()[1]) == (0, b"3\t1\t0\t0\t0\t0\t0\t0")


def test_a_reader_that_goes_away_is_one_line(im: Im) -> None:
    for _ in range(3):
        im.run("send", "team", "x" * 60_000, "--from", "ann")

    with subprocess.Popen(
        im.command("pull", "bob"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=im.environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()

    assert process.returncode == 1
    assert said == b"im: the output could not be written: Broken pipe\n"


def test_an_interrupt_ends_an_ordinary_command_with_130(im: Im) -> None:
    with subprocess.Popen(
        im.command("import", "-"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=im.environment
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b'{"type": "join", "gid": "sign", "uid": "ann"}\n' * 3000)
        process.stdin.flush()
        wait_until(lambda: any(group["gid"] == "sign" for group in im.json("group", "list")))
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()

    assert process.returncode == 130
    assert b"Traceback" not in said


def on_a_terminal(
    command: Sequence[str | bytes],
    environment: dict[str, str],
    typed: bytes = b"",
    *,
    interrupt_at: bytes = b"",
) -> tuple[int, str]:
    """Run a program on a terminal of its own; return its exit code and all that it printed there.

    It is interrupted once this text is printed, if one is given.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, environment)
    os.write(terminal, typed)
    said = b""
    for data in _read_all(terminal):
        said += data
        if interrupt_at and interrupt_at in said:
            _interrupt(pid, terminal)
            interrupt_at = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()


def _interrupt(pid: int, terminal: int) -> None:
    """Interrupt until the program reacts: an interrupt at the begin of readline waits there for the next key."""
    is_heard = False
    while not is_heard:
        os.kill(pid, signal.SIGINT)
        is_heard = bool(select.select([terminal], [], [], INTERRUPT_AGAIN_S)[0])


def _read_all(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # so a terminal says that its last program has ended
            return
        if not data:
            return
        yield data


def test_a_terminal_gets_a_table_and_no_hostile_text_acts_on_it(im: Im) -> None:
    im.json("send", "team", HOSTILE, "--from", "ann")

    code, said = on_a_terminal(im.command("pull", "bob"), {**im.environment, "TERM": "xterm", "COLUMNS": "120"})

    assert code == 0
    assert "\x1b[1;36m" in said  # the head of the table has a colour
    assert "\x1b[2J" not in said
    assert "\u202e" not in said
    assert "␛[2J[red]eve[/red]␊<U+202E>" in said.replace("\r\n", "")
    assert said.count("x") >= 3000


def test_destructive_commands_ask_on_a_terminal(im: Im) -> None:
    code, said = on_a_terminal(im.command("group", "remove", "team", "bob"), im.environment, b"n\n")
    assert code == 1
    assert "Remove bob from team? [y/N]:" in said
    assert len(im.json("group", "show", "team")) == 2

    code, _ = on_a_terminal(im.command("group", "remove", "team", "bob"), im.environment, b"y\n")
    assert code == 0
    assert len(im.json("group", "show", "team")) == 1


def test_an_interrupt_at_a_question_does_nothing_and_ends_with_130(im: Im) -> None:
    code, said = on_a_terminal(im.command("group", "remove", "team", "bob"), im.environment, interrupt_at=b"[y/N]")
    assert code == 130
    assert "im: interrupted" in said
    assert len(im.json("group", "show", "team")) == 2


def test_a_bar_on_the_terminal_leaves_the_output_in_its_pipe(im: Im, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_bytes(b'{"type": "join", "gid": "team", "uid": "cleo"}\nnot json\n')
    terminal, theirs = pty.openpty()

    with subprocess.Popen(
        im.command("import", str(file), "--json"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**im.environment, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        shown = b"".join(_read_all(terminal)).decode()
        printed = process.stdout.read()
    os.close(terminal)

    assert process.returncode == 1
    assert json.loads(printed) == {
        "messages": 0,
        "joins": 1,
        "leaves": 0,
        "acks": 0,
        "delivered": 0,
        "marks": 0,
        "recalls": 0,
        "errors": 1,
    }
    assert "bytes" in shown
    assert "im: line 2: the line is not JSON" in shown
