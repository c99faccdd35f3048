"""`imcore/web/README.md` is what the code does: methods, notifications, settings, close codes."""

import json
import re
from dataclasses import fields

from imcore.web import client
from imcore.web.method import METHODS
from imcore.web.openrpc import NOTIFICATIONS, document
from imcore.web.settings import WebSettings
from tests.helpers.documents import Document

README = Document("imcore/web/README.md")


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def rows(heading: str) -> list[list[str]]:
    return [list(row) for row in README.table(heading)]


def test_every_method_is_in_the_table_with_all_its_parameters() -> None:
    shown: dict[str, set[str]] = {}
    for names, parameters, _ in rows("method"):
        shown |= {name: set(code_in(parameters)) for name in code_in(names)}
    shown["groups"] = set()
    public = {name: method for name, method in METHODS.items() if not method.is_demo_only}
    assert shown == {
        name: {parameter.name for parameter in method.parameters} - {"uid"} for name, method in public.items()
    }


def test_every_notification_is_named() -> None:
    named = [name for names, *_ in rows("notification") for name in code_in(names)]
    assert named == list(NOTIFICATIONS)


def test_every_setting_is_in_the_table_with_its_default() -> None:
    shown: dict[str, str] = {}
    for names, defaults, _ in rows("environment"):
        variables = code_in(names)
        shown |= dict(zip(variables, defaults.split(", ") if defaults else [""] * len(variables), strict=True))
    expected = {f"IM_WEB_{field.name.upper()}": field.default for field in fields(WebSettings)}
    assert shown == {name: str(default) if isinstance(default, int) else "" for name, default in expected.items()}


def test_every_close_code_is_in_the_table() -> None:
    shown = {int(code) for row in rows("close code") for code in row[0].split(", ")}
    known = (client.GOING_AWAY, client.BINARY, client.NOT_UTF8, client.TOO_LARGE)
    assert shown == {*known, client.UNAUTHORIZED, client.TOO_SLOW, client.TOO_MANY}


def test_the_document_is_made_from_the_methods() -> None:
    made = document(METHODS)
    assert [method["name"] for method in made["methods"]] == list(METHODS)
    assert json.loads(json.dumps(made)) == made
    for method in made["methods"]:
        assert method["summary"].endswith(".")
        assert {parameter["name"] for parameter in method["params"]} == {
            parameter.name for parameter in METHODS[method["name"]].parameters
        }
