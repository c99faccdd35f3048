"""The commands around the chat: import, check, stats, db."""

import gzip
import io
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from imcore.admin.retention import TrimSummary
from imcore.cli import output
from imcore.cli.app import Invocation
from imcore.cli.progress import progress
from imcore.errors import ConfigurationError
from imcore.importer.event import parse
from imcore.importer.formats import Line, Unreadable
from imcore.importer.importer import ImportSummary
from imcore.repair.diff import Difference
from imcore.repair.rebuild import Before, RebuildSummary
from imcore.settings import Settings
from tests.helpers.cli import im

NONE = {"delivered": 0, "marks": 0, "recalls": 0}
"""Some numbers of an import that had nothing of them."""


@pytest.fixture(autouse=True)
def _no_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Invocation, "connect", lambda _: Mock())
    monkeypatch.setattr("imcore.admin.server_settings.all_servers", lambda *_: ())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that an import was given; of those with `bad` it complains."""
    lines: list[bytes] = []

    def import_events(
        _: object,
        source: Iterable[Line],
        *,
        on_error: Callable[[int, str], None],
        on_progress: Callable[[int], None],
    ) -> ImportSummary:
        summary = ImportSummary()
        for number, line in enumerate(source, 1):
            if isinstance(line, Unreadable):
                summary.errors += 1
                on_error(number, line.reason)
                continue
            lines.append(line)
            on_progress(len(line))
            if b"bad" in line:
                summary.errors += 1
                on_error(number, "not\x1b[31m valid")
            else:
                summary.messages += 1
        return summary

    monkeypatch.setattr("imcore.importer.importer.import_events", import_events)
    return lines


def test_the_help_of_import_shows_every_form_and_each_is_valid() -> None:
    shown = [line.strip() for line in im("import", "--help").stdout.splitlines() if line.strip().startswith("{")]

    events = [parse(line.encode(), max_content_bytes=1000) for line in shown]

    assert [event.type for event in events] == [
        *("message", "join", "leave", "rename", "ack", "delivered", "mark", "recall", "group"),
    ]


def test_import_prints_its_summary(seen: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "群 chat.jsonl"
    file.write_bytes(b'{"one": 1}\n{"two": 2}')

    result = im("import", str(file), "--json")

    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"messages": 2, "joins": 0, "leaves": 0, "acks": 0, **NONE, "errors": 0}
    assert seen == [b'{"one": 1}\n', b'{"two": 2}']


def test_import_reads_stdin(seen: list[bytes]) -> None:
    assert im("import", "-", stdin=b"{}\n\xff\n").exit_code == 0
    assert seen == [b"{}\n", b"\xff\n"]


def test_import_reports_bad_lines_continues_and_ends_with_1(seen: list[bytes]) -> None:
    result = im("import", "-", "--json", stdin="{}\nbad\nthree\n")

    assert result.exit_code == 1
    assert result.stderr == "im: line 2: not␛[31m valid\n"
    assert json.loads(result.stdout)["messages"] == 2


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere\x1b[0m", "No such file or directory"), (".", "Is a directory"), ("a\0b", "null byte")]
)
def test_import_of_a_path_that_is_no_file(seen: list[bytes], name: str, why: str) -> None:
    result = im("import", name)

    assert (result.exit_code, result.stdout) == (1, "")
    assert why in result.stderr
    assert "\x1b" not in result.stderr


LINES = [b'{"one": 1}\n', b'{"two": 2}\n']


@pytest.mark.parametrize("read", [bytes, gzip.compress, lambda data: b"\xff\xfe" + data.decode().encode("utf-16-le")])
def test_import_reads_the_forms_that_people_have(
    seen: list[bytes], tmp_path: Path, read: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_bytes(read(b"".join(LINES)))

    for name, stdin in ((str(file), None), ("-", file.read_bytes())):
        result = im("import", name, "--json", stdin=stdin)
        assert (result.exit_code, result.stderr, json.loads(result.stdout)["messages"]) == (0, "", 2)
    assert seen == LINES * 2


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (b"[\n" + b'{"type": "join"},\n' * 5000 + b"]\n", "is a JSON array, not one object a line"),
        (b'{"type": "join"}\r' * 5000, "is a text whose lines end with CR only"),
        (b"gid,uid\n" * 5000, "is not JSON Lines: none of its first 100 lines is a JSON object"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive"),
    ],
)
def test_import_reports_a_wrong_form_once_before_it_asks_any_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, form: str
) -> None:
    monkeypatch.setattr(Invocation, "connect", lambda _: pytest.fail("it asks a server"))
    file = tmp_path / "chat.jsonl"
    file.write_bytes(data)

    for name, stdin in ((str(file), None), ("-", data)):
        result = im("import", name, stdin=stdin)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"im: {'stdin' if name == '-' else file} {form}")
        assert result.stderr.count("\n") == 1


def test_import_replays_the_whole_part_of_a_truncated_file(seen: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(LINES))[:-4])

    result = im("import", str(file), "--json")

    assert (result.exit_code, seen) == (1, LINES)
    assert result.stderr == "im: line 3: the rest cannot be read: the gzip data is cut off\n"
    assert json.loads(result.stdout) == {"messages": 2, "joins": 0, "leaves": 0, "acks": 0, **NONE, "errors": 1}


def test_import_shows_progress_in_bytes_of_the_file(
    seen: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, int | None]] = []
    monkeypatch.setattr("imcore.cli.commands.import_.progress", lambda _: nullcontext(lambda *seen: shown.append(seen)))
    monkeypatch.setattr(output, "complain", pytest.fail)
    file = tmp_path / "chat.jsonl.gz"
    chance = random.Random(1)
    file.write_bytes(gzip.compress(b"".join(b'{"n": "%d"}\n' % chance.getrandbits(512) for _ in range(5000))))

    assert im("import", str(file)).exit_code == 0

    size = file.stat().st_size
    assert shown[-1] == (size, size)
    assert shown == sorted(shown)
    assert len(set(shown)) > 2


def test_import_of_a_stream_without_end_ends() -> None:
    result = im("import", "/dev/zero")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("im: /dev/zero is binary data, not JSON Lines")


def test_import_of_a_named_pipe(seen: list[bytes], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(pipe.write_bytes, gzip.compress(b"".join(LINES)))
        assert im("import", str(pipe)).exit_code == 0
        writing.result()
    assert seen == LINES


def test_progress_is_a_bar_where_a_person_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    with progress("bytes") as shown:
        shown(5, 10)
        output.complain("line 1: [red]:smile:[/red]\x1b[2J")

    assert "5/10 bytes" in terminal.getvalue()
    assert "im: line 1: [red]:smile:[/red]␛[2J" in terminal.getvalue()


@pytest.fixture
def differences(monkeypatch: pytest.MonkeyPatch) -> list[Difference]:
    """What a check finds."""
    found: list[Difference] = []

    def check(_: object, *, repair: bool, on_progress: Callable[[int, int], None]) -> Iterator[Difference]:
        on_progress(1, 2)
        yield from (each if repair else replace(each, repaired=False) for each in found)

    monkeypatch.setattr("imcore.repair.check.check", check)
    return found


def test_check_without_a_difference_is_0(differences: list[Difference]) -> None:
    result = im("check", "--json")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_check_prints_each_difference_and_ends_with_1(differences: list[Difference]) -> None:
    differences.append(Difference("messages", "3", "2", gid="team", repaired=True))

    result = im("check", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"gid": "team", "what": "messages", "redis": "3", "sql": "2"}
    assert result.stderr == "im: differences between Redis and SQL: 1\n"


@pytest.mark.parametrize(("left", "code"), [(0, 0), (1, 1)])
def test_check_with_repair_is_0_if_all_was_mended(differences: list[Difference], left: int, code: int) -> None:
    differences += [Difference("messages", "3", "2", gid="team", repaired=True)] * 2
    differences += [Difference("content", "a", "b", gid="team")] * left

    result = im("check", "--repair", "--json")

    assert result.exit_code == code
    assert [json.loads(line)["repaired"] for line in result.stdout.splitlines()] == [True, True] + [False] * left
    assert result.stderr == f"im: differences between Redis and SQL: {2 + left}, 2 mended\n"


def test_db_upgrade_makes_the_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # it connects to real stores
    result = im("db", "upgrade", "--data-dir", str(tmp_path), "--json")

    done = {"database": f"sqlite:///{tmp_path}/imcore.db", "redis": None, "status": "up to date"}
    assert (result.exit_code, json.loads(result.stdout)) == (0, done)
    assert re.fullmatch(r"im: the functions in Redis are as they were: no answer from Redis at .*\n", result.stderr)
    assert (tmp_path / "imcore.db").exists()


def test_trim_prints_what_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, int | None]] = []

    def trimmed(_: object, **limits: int | None) -> TrimSummary:
        calls.append(limits)
        return TrimSummary(groups=1, entries=20, journal_entries=3)

    monkeypatch.setattr("imcore.admin.retention.trim", trimmed)
    monkeypatch.setattr("imcore.admin.append_only.forget_withdrawn", lambda *_, **__: 1)
    monkeypatch.setattr("imcore.admin.append_only.count_kept", lambda _: 0)
    monkeypatch.setattr("imcore.repair.rewriting.rewrite_all", lambda _: 0)

    dropped = {"groups": 1, "entries": 20, "journal_entries": 3, "read_times": 0, "rewritten": 1}
    assert json.loads(im("trim", "--json").stdout) == dropped
    assert im("trim", "--keep-messages", "0", "--keep-days", "0.5").exit_code == 0
    assert calls == [{"keep_messages": None, "keep_ms": None}, {"keep_messages": 0, "keep_ms": 43_200_000}]


@pytest.mark.parametrize(
    ("option", "setting", "per_unit"),
    [("--keep-days", "keep_ms", 24 * 60 * 60 * 1000), ("--keep-messages", "keep_messages", 1)],
)
def test_the_options_of_trim_have_the_limits_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, option: str, setting: str, per_unit: int
) -> None:
    limit_values: list[int | None] = []

    def trimmed(_: object, **limits: int | None) -> TrimSummary:
        limit_values.append(limits[setting])
        return TrimSummary(journal_entries=1)

    monkeypatch.setattr("imcore.admin.retention.trim", trimmed)
    monkeypatch.setattr("imcore.admin.append_only.forget_withdrawn", lambda *_, **__: 0)
    monkeypatch.setattr("imcore.admin.append_only.count_kept", lambda _: 0)
    monkeypatch.setattr("imcore.repair.rewriting.rewrite_all", lambda _: 0)
    [highest] = [re.search(r"0<=x<=(\d+)", line) for line in im("trim", option, str(10**20)).stderr.splitlines()][-1:]
    assert highest
    most = int(highest[1])

    assert im("trim", option, str(most)).exit_code == 0

    assert limit_values == [most * per_unit]
    assert getattr(Settings.from_env({}, **{setting: str(most * per_unit)}), setting) == most * per_unit
    with pytest.raises(ConfigurationError):
        Settings.from_env({}, **{setting: str(most * per_unit + 1)})


def test_trim_says_why_the_journals_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imcore.admin.retention.trim", lambda *_, **__: TrimSummary())
    monkeypatch.setattr("imcore.admin.retention.held_up", lambda _: "the journals keep 4 entries: so it is")
    monkeypatch.setattr("imcore.admin.append_only.forget_withdrawn", lambda *_, **__: 0)
    monkeypatch.setattr("imcore.admin.append_only.count_kept", lambda _: 0)
    monkeypatch.setattr("imcore.repair.rewriting.rewrite_all", lambda _: 0)

    result = im("trim", "--json")

    assert json.loads(result.stdout)["journal_entries"] == 0
    assert (result.exit_code, result.stderr) == (0, "im: the journals keep 4 entries: so it is\n")


def test_rebuild_is_done_only_if_it_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    def rebuilt(
        chat: object, *, yes: bool, adopt: bool, on_progress: Callable[[RebuildSummary], None]
    ) -> RebuildSummary:
        done.append((yes, adopt))
        on_progress(RebuildSummary(groups=1))
        return RebuildSummary(groups=2, messages=3)

    system = Mock(**{"client.address": "redis://here", "database.address": "sqlite:///db"})
    monkeypatch.setattr(Invocation, "connect", lambda _: system)
    monkeypatch.setattr("imcore.repair.rebuild.look_before", lambda _: Before(7, 9, 8, "a", "a", False))
    monkeypatch.setattr("imcore.repair.rebuild.rebuild", rebuilt)

    refused = im("rebuild")
    assert (refused.exit_code, refused.stdout, len(done)) == (1, "", 0)
    assert "--yes" in refused.stderr
    assert "redis://here, which holds 7 groups, from the 9 groups of sqlite:///db" in refused.stderr

    agreed = im("rebuild", "--yes", "--json")
    assert (agreed.exit_code, done) == (0, [(True, False)])
    assert json.loads(agreed.stdout)["messages"] == 3
