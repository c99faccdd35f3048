"""How figures are shown, drawn and saved."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from imcore.cli.bench.harness import saved
from imcore.cli.bench.harness.figures import (
    Aim,
    Figure,
    RoundPlan,
    Rounds,
    Yardstick,
    number,
    to_record,
    to_row,
)
from imcore.cli.bench.harness.report import bars, picture, tables
from imcore.errors import InvalidInput

MACHINE = {"cpu": "a <fast> one", "cores": 2, "redis": "Valkey 9", "databases": ["SQLite 3"], "date": "2026-01-02T03"}
OURS, RAW = Rounds((10.0, 12.0, 11.0)), Rounds((5.0, 4.0, 5.5))
SEND = Figure(
    bench="send",
    what="send, pipelined",
    unit="us",
    rounds=OURS,
    yardstick=Yardstick("raw XADD", RAW),
    aim=Aim("<=", 2.2),
    charted=True,
)
PLAIN = Figure(bench="send", what="raw XADD", unit="us", rounds=RAW, charted=True)
CYCLES = [
    Figure(bench="storm", subject=subject, what="cycles", unit="1/s", table="speed", rounds=Rounds((value,)))
    for subject, value in (("ours", 2000.0), ("theirs", 100.0))
]


def test_figure_is_held_against_its_aim_by_ratio_or_by_value() -> None:
    assert SEND.ratio is not None
    assert SEND.ratio.median == 2.0
    assert SEND.reached is True
    assert PLAIN.reached is None
    for aim, reached in ((Aim(">=", 3), False), (Aim("<=", 11, of_ratio=False), True), (Aim(">=", 12, False), False)):
        assert Figure(bench="b", what="w", unit="", rounds=OURS, yardstick=SEND.yardstick, aim=aim).reached is reached


def test_yardstick_of_zero_gives_no_ratio() -> None:
    figure = Figure(bench="b", what="w", unit="B", rounds=OURS, yardstick=Yardstick("none", Rounds((0.0, 0.0, 0.0))))

    assert figure.ratio is None
    assert to_record(figure)["ratio"] is None
    assert to_row(figure)["ratio"] == ""


def test_figure_as_json() -> None:
    assert to_record(SEND) == {
        "bench": "send",
        "figure": "send, pipelined",
        "unit": "us",
        "median": 11.0,
        "low": 10.0,
        "high": 12.0,
        "rounds": [10.0, 12.0, 11.0],
        "yardstick": {"name": "raw XADD", "median": 5.0, "low": 4.0, "high": 5.5, "rounds": [5.0, 4.0, 5.5]},
        "ratio": {"median": 2.0, "low": 2.0, "high": 3.0, "rounds": [2.0, 3.0, 2.0]},
        "aim": {"text": "<= 2.2 x", "reached": True},
    }
    assert to_record(CYCLES[0])["figure"] == "ours: cycles"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (5.678, "5.68"), (99.94, "99.9"), (123.4, "123"), (98765, "98,765")],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_table_shows_its_figures_beside_each_other() -> None:
    speed, send = tables([*CYCLES, SEND, PLAIN])

    assert (speed.title, speed.columns) == ("storm: speed", ("", "cycles, 1/s"))
    assert speed.rows == [{"": "ours", "cycles, 1/s": "2,000"}, {"": "theirs", "cycles, 1/s": "100"}]
    assert [row["figure"] for row in send.rows] == ["send, pipelined", "raw XADD"]
    assert send.rows[0]["aim"] == "<= 2.2 x ok"


def test_tables_show_what_has_changed_since_another_run() -> None:
    *_, compared = tables([SEND, PLAIN], {("send", "send, pipelined"): 22.0, ("gone", "x"): 1.0})

    assert compared.rows == [
        {"figure": "send: send, pipelined", "before": "22", "now": "11", "unit": "us", "change": "-50%"}
    ]


def test_bars_are_as_long_as_their_figures() -> None:
    lines = [line for line in bars([SEND, PLAIN]) if "█" in line]

    assert [line.count("█") for line in lines] == [40, 18]


def test_picture_is_xml_with_a_bar_for_each_charted_figure() -> None:
    svg = ElementTree.fromstring(picture([SEND, PLAIN, *CYCLES], saved.caption(MACHINE, RoundPlan(quick=True))))

    bar_elements = svg.findall("{*}rect")
    assert len(bar_elements) == 2
    assert "a <fast> one" in (svg.findtext("{*}title") or "")


def test_saved_run_can_be_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "run.json"

    saved.save(path, MACHINE, RoundPlan(), [SEND, *CYCLES])

    assert json.loads(path.read_text())["machine"] == MACHINE
    assert saved.load(path) == {
        ("send", "send, pipelined"): 11.0,
        ("storm", "ours: cycles"): 2000.0,
        ("storm", "theirs: cycles"): 100.0,
    }


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "not json", '{"format": 1, "figures": [{}]}', '{"format": 99, "figures": []}'], ids=str
)
def test_load_refuses_a_file_that_is_no_run_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)

    with pytest.raises(InvalidInput, match=r"run\.json"):
        saved.load(path)


def test_check_writable_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    saved.check_writable(tmp_path / "new.json")
    for path in (tmp_path, tmp_path / "no folder" / "new.json"):
        with pytest.raises(InvalidInput, match="cannot be written"):
            saved.check_writable(path)
