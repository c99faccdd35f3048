"""The example of README's "Use it from Python", run on a new server and a new database of each kind."""

import ast
import re

import pytest

from tests.helpers.documents import README

REDIS_URL, DATABASE_URL = "redis://localhost:6379", "postgresql:///chat"


def test_the_example_prints_what_its_comment_says(
    valkey: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given
    [block] = README.blocks_in("python")
    assert [block.text.count(f'"{url}"') for url in (REDIS_URL, DATABASE_URL)] == [1, 1]
    [expected] = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE)

    # When
    code = block.text.replace(REDIS_URL, valkey).replace(DATABASE_URL, database_url)
    exec(compile(code, README.name, "exec"), {})

    # Then
    assert capsys.readouterr().out == f"{expected}\n"
    assert [ast.literal_eval(part) for part in expected.split(" ", 1)] == [["bob"], ("cy",)]
