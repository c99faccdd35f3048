"""Numbers, settings and floors in the documentation are those of the product."""

import re
import tomllib
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path

import pytest

from imcore import msgid, process
from imcore.admin import acl
from imcore.cli.catalogue import SHARED_OPTIONS
from imcore.gateway.ack_sender import FOLD_S
from imcore.gateway.options import GatewayOptions
from imcore.model import limits
from imcore.operations import creation
from imcore.settings import Settings
from imcore.sql import postgres_checks
from imcore.streams import keys, server_info
from imcore.util import backoff
from tests.helpers.documents import README, Document, code_in
from tests.house.figures import BOUNDS
from tests.house.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DEFAULTS = Settings.from_env({}, data_dir="/data")

_UNITS_MS = {"": 1, "s": 1000, "hour": 3_600_000, "hours": 3_600_000, "days": 86_400_000}
_AMOUNT = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)(?: (s|hours?|days)\b)?")


def amounts(text: str) -> list[float]:
    """Return the numbers in a text; those with a unit of time are in milliseconds."""
    return [float(number.replace(",", "")) * _UNITS_MS[unit] for number, unit in _AMOUNT.findall(text)]


def test_amounts_are_read() -> None:
    assert amounts("10,000, 30 days, 1 hour") == [10_000, 30 * 86_400_000, 3_600_000]
    assert amounts("0.2 s, 5") == [200, 5]


def settings_table() -> dict[str, str]:
    """Return the cell of defaults for each variable."""
    rows = README.table("environment")
    return {variable: row[2] for row in rows for variable in code_in(row[0])}


def test_the_table_of_settings_has_each_setting() -> None:
    assert settings_table().keys() == {f"IM_{name.upper()}" for name in Settings.__dataclass_fields__}


def test_the_table_of_settings_has_the_defaults() -> None:
    wrong = {}
    for row in README.table("environment"):
        variables = code_in(row[0])
        values = {name: getattr(DEFAULTS, name.removeprefix("IM_").lower()) for name in variables}
        values = {name: keys.DEFAULT_PARTITIONS if value is None else value for name, value in values.items()}
        if not any(isinstance(value, str | Path) for value in values.values()):
            said = amounts(re.split("[:;]", row[2])[0])
            if said != list(map(float, values.values())):
                wrong[row[0]] = (said, values)
    assert wrong == {}


def test_the_defaults_of_places_are_what_the_table_says() -> None:
    table = settings_table()
    assert "unix socket, no TCP port" in table["IM_REDIS_URL"]
    assert DEFAULTS.embedded
    assert DEFAULTS.redis_url.startswith("unix:///data/")
    assert table["IM_DATABASE_URL"] == "SQLite file in the data directory"
    assert DEFAULTS.database_url == "sqlite:////data/imcore.db"
    assert table["IM_JOBS_REDIS_URL"].startswith("as `IM_REDIS_URL`")
    assert DEFAULTS.jobs_redis_url == DEFAULTS.redis_url


def test_the_table_of_settings_has_the_options() -> None:
    options = {variable: row[1] for row in README.table("environment") for variable in code_in(row[0])}
    by_help = {match[1]: f"`{flag}`" for flag, _, text in SHARED_OPTIONS if (match := re.search(r"\[(IM_\w+)", text))}
    assert {variable: option for variable, option in options.items() if option} == by_help


def test_the_floors_are_those_that_lint_holds() -> None:
    [contract] = [each for each in PROJECT["tool"]["importlinter"]["contracts"] if each["id"] == "floors"]
    layers = [{name.strip(" ()") for name in layer.split("|")} for layer in contract["layers"]]
    rows = list(Document("imcore/README.md").table("floor"))
    assert [set(code_in(row[1])) for row in rows] == layers[::-1]
    assert [row[0] for row in rows] == [str(number) for number in range(len(layers))]


def oldest(name: str) -> str:
    return ".".join(map(str, server_info.OLDEST[name]))


FACTS = {
    "README.md": [
        f"Python {PROJECT['project']['requires-python'].removeprefix('>=')}+",
        f"Redis {oldest('Redis')} or Valkey {oldest('Valkey')} and newer",
        f"PostgreSQL {postgres_checks.OLDEST // 10_000} and newer",
        f"are 1 to {limits.MAX_NAME_BYTES} bytes of UTF-8",
        f"1 byte to {DEFAULTS.max_content_bytes // 1024} KiB without NUL",
        f"may be repeated for {DEFAULTS.idempotency_ms // 3_600_000} hours (`IM_IDEMPOTENCY_MS`)",
        f"more than {creation.STEP} members is created in steps",
        f"those that take longer than {process.WORKER_PATIENCE_S:g} s",
    ],
    "imcore/README.md": [
        f"a window ({DEFAULTS.receipt_window_ms} ms)",
        f"`(ms - 2020-01-01) << {msgid.COUNTER_BITS} | n`",
    ],
    "imcore/gateway/README.md": [
        f"{backoff.FIRST_WAIT_S:g} s at first and {backoff.LONGEST_WAIT_S:g} s at most",
    ],
    "imcore/repair/README.md": [f"every {DEFAULTS.lease_ms // 1000} s (`IM_LEASE_MS`)"],
    ".github/CONTRIBUTING.md": [
        f"complexity {PROJECT['tool']['ruff']['lint']['mccabe']['max-complexity']}",
        f"at most {BOUNDS['longest module']} lines",
    ],
    "CHANGELOG.md": [f"Redis {oldest('Redis')}, Valkey {oldest('Valkey')}"],
}


@pytest.mark.parametrize(("name", "fact"), [(name, fact) for name, facts in FACTS.items() for fact in facts])
def test_a_number_is_the_one_of_the_product(name: str, fact: str) -> None:
    assert fact in Document(name).words


def test_the_pictures_have_the_numbers_of_the_product() -> None:
    [picture, *_] = README.blocks_in("")
    gateway = {name: parameter.default for name, parameter in signature(GatewayOptions).parameters.items()}
    assert f"folded over a window ({DEFAULTS.receipt_window_ms} ms)" in picture.text
    assert re.search(rf"every {gateway['ack_every']}\b", picture.text)
    assert re.search(rf"messages or {gateway['ack_interval_s']:g} s\b", picture.text)
    assert f"wait {FOLD_S * 1000:g} ms for" in Document("imcore/gateway/README.md").text


def test_msgids_begin_in_the_year_that_the_formula_has() -> None:
    assert datetime.fromtimestamp(msgid.EPOCH_MS / 1000, UTC) == datetime(2020, 1, 1, tzinfo=UTC)


def test_the_table_of_roles_has_each() -> None:
    rows = list(Document("cli/README.md").table("user"))
    assert {row[0] for row in rows} == {f"`{role.user}`" for role in acl.ROLES.values()}
    assert f"`{acl.PASSWORD}`" in Document("cli/README.md").words
