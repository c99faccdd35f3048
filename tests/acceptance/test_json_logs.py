"""With IM_LOG_FORMAT=json every line of a log is one JSON object, whatever happens: tracebacks, odd texts, bad ends."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from imcore.workers import jobs
from tests.helpers.deadline import wait_until
from tests.helpers.processes import WorkerProcess
from tests.helpers.servers import require_server

ODD = "no such\nthing\x1b[31m \u202e\u7fa4"
KEYS = {"time", "level", "process", "logger", "message"}


def objects(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.isascii()
    assert [line for line in lines if not line.keys() >= KEYS] == []
    return lines


def test_each_line_of_a_worker_is_an_object_with_tracebacks_within(valkey: str, tmp_path: Path) -> None:
    # Given jobs that fail in two ways, and an entry of a journal that no worker can read
    with closing(redis.Redis.from_url(valkey)) as connection:
        jobs.queue(connection).enqueue("imcore.workers.jobs.no_such_job")
        jobs.queue(connection).enqueue("json.loads", "not json")
        connection.xadd("im:{0}:journal", {"kind": ODD})
    given = {"redis_url": valkey, "log_format": "json", "max_deliveries": 1}
    # When workers do what they can
    with WorkerProcess(tmp_path, "jobs", **given) as trims, WorkerProcess(tmp_path, "persist", **given) as persist:
        trims.wait_for("JSONDecodeError")
        trims.wait_for("trimmed 0 entries")
        persist.wait_for("dead letter")
        assert (trims.end(), persist.end()) == (0, 0)
    # Then each line says what happened
    said = objects(trims.log)
    assert {line["process"] for line in said} == {"jobs"}
    told = [line["message"] + line.get("exception", "") for line in said]  # rq writes tracebacks as messages
    assert [text for text in told if "JSONDecodeError" in text and text.count("\n") > 3]
    [dead] = [line for line in objects(persist.log) if line["message"].startswith("dead letter")]
    assert dead["level"] == "error"


def test_a_worker_that_fails_says_why_in_an_object(tmp_path: Path) -> None:
    given = {"redis_url": "redis://ann:hunter2@127.0.0.1:1/0", "log_format": "json"}
    with WorkerProcess(tmp_path, "persist", "--burst", **given) as burst:
        assert burst.wait() == 1
    *_, last = objects(burst.log)
    assert last["level"] == "error"
    assert "no answer from Redis at redis://127.0.0.1:1/0" in last["message"]
    assert "hunter2" not in burst.log


def test_the_lowest_level_is_a_setting(valkey: str, tmp_path: Path) -> None:
    given = {"redis_url": valkey, "log_format": "json"}
    with WorkerProcess(tmp_path, "persist", "--burst", log_level="error", **given) as burst:
        assert burst.wait() == 0
    assert burst.log == ""


@pytest.mark.parametrize("value", ["xml", "JSON"])
def test_a_wrong_form_is_refused_in_one_line(tmp_path: Path, value: str) -> None:
    with WorkerProcess(tmp_path, "persist", log_format=value) as worker:
        assert worker.wait() == 1
    assert worker.log == f"im worker persist: IM_LOG_FORMAT must be text or json; it is '{value}'\n"


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["plain", "json"])
def test_the_log_of_up_is_json_lines_with_those_of_its_workers(tmp_path: Path, as_json: list[str]) -> None:
    require_server()
    environment = {**os.environ, "IM_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": os.pathsep.join(sys.path)}
    out, err = tmp_path / "out", tmp_path / "err"
    log = err if as_json else out
    with (
        out.open("wb") as stdout,
        err.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "imcore.cli.main", "up", *as_json],
            env=environment | {"IM_LOG_FORMAT": "json"},
            stdout=stdout,
            stderr=stderr,
        ) as up,
    ):
        try:
            # When a worker is killed after a while
            wait_until(lambda: log.read_text().count("started:") == 3 or up.poll() is not None, timeout_s=60)
            children = Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split()
            names = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children}
            os.kill(int(next(child for child, name in names.items() if "receipts" in name)), 9)
            up.wait(60)
        finally:
            up.kill()
    # Then the reason is the last line of the log, and nothing is anywhere else
    assert up.returncode == 1
    said = objects(log.read_text())
    assert {line["process"] for line in said} == {"up", "persist", "receipts", "jobs"}
    [failure] = [line for line in said if line["level"] == "error"]
    assert failure["message"].startswith("the process receipts ended by itself (exit code -9)")
    if as_json:
        assert [json.loads(line)["event"] for line in out.read_text().splitlines()] == ["started"]
    else:
        assert err.read_text() == ""
