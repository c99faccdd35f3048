"""`im acl`: rules for the users of Redis, without asking Redis."""

import json

from click.testing import CliRunner, Result

from imcore.admin.acl import PASSWORD, ROLES
from imcore.cli.app import app


def im(*args: str) -> Result:
    return CliRunner().invoke(app, ["acl", *args, "--redis-url", "redis://ann:s3cret@nowhere"], catch_exceptions=False)


def test_acl_prints_a_command_for_each_role_with_a_password_placeholder() -> None:
    result = im()

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [role.set_user() for role in ROLES.values()]
    assert all(line.startswith("ACL SETUSER im-") and PASSWORD in line for line in result.stdout.splitlines())
    assert "s3cret" not in result.stdout


def test_acl_prints_each_requested_role_once() -> None:
    lines = im("reader", "gateway", "reader", "--aclfile").stdout.splitlines()

    assert [line.split()[:4] for line in lines] == [
        ["user", "im-reader", "on", PASSWORD],
        ["user", "im-gateway", "on", PASSWORD],
    ]


def test_json() -> None:
    [record] = [json.loads(line) for line in im("reader", "--json").stdout.splitlines()]

    assert list(record) == ["role", "user", "rules"]
    assert (record["role"], record["user"]) == ("reader", "im-reader")
    assert record["rules"] == list(ROLES["reader"].rules)


def test_a_reader_writes_nothing_and_a_gateway_deletes_nothing_but_what_is_listed() -> None:
    assert not {"~im:*", "&im:*", "+fcall", "+xadd"} & set(ROLES["reader"].rules)
    beside_selectors = ROLES["gateway"].set_user().partition(" (")[0].split()
    assert not {"+del", "+unlink", "+rename", "+xtrim", "+xdel", "+function|load"} & set(beside_selectors)
    assert not any(rule in {"allcommands", "+@all", "~*", "&*"} for role in ROLES.values() for rule in role.rules)


def test_the_oldest_server_knows_every_rule() -> None:
    newer_than_redis_7_0 = ("client|setinfo", "client|no-touch", "waitaof", "cluster|myshardid", "cluster|links")
    assert not [
        rule for role in ROLES.values() for rule in role.rules if any(name in rule for name in newer_than_redis_7_0)
    ]


def test_an_unknown_role_is_wrong_usage() -> None:
    result = im("everything")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "'everything' is not one of 'worker', 'gateway', 'reader'" in result.stderr


def test_only_a_selector_has_spaces_in_it() -> None:
    for rule in (rule for role in ROLES.values() for rule in role.rules):
        assert rule.isascii()
        assert " " not in rule or (rule[0], rule[-1]) == ("(", ")")
