"""Everything that the documentation names exists: files, links, modules, calls, settings, other names."""

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import imcore
from imcore import Chat, Gateway, Session
from imcore.settings import Settings
from imcore.web.settings import WebSettings
from tests.helpers.documents import Document, documents
from tests.house.sources import ROOT, files

_PATH = re.compile(r"[\w.*-]*/[\w./*-]*|[\w-]+\.(py|lua|md|toml|yaml)|Procfile")
_MODULE = re.compile(r"imcore(\.\w+)+")
_CALL = re.compile(r"(chat|Chat|gateway|session)\.(\w+)(?:\((.*)\))?")
_VARIABLE = re.compile(r"\bIM_[A-Z_]*[A-Z]\b")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

_OBJECTS = {"chat": Chat, "Chat": Chat, "gateway": Gateway, "session": Session}

_NAMES_OF_OTHERS = set(
    re.findall(
        r"\S+",
        """
        FCALL FLUSHALL FULL GET INFO KEYS MAXLEN MEMORY USAGE PG PUBLISH WAIT WAITAOF
        XADD XDEL XINFO XREADGROUP XTRIM ZCOUNT FOLDER PASSWORD
        always appendfsync everysec maxmemory min noeviction rediss replicas ssl_ca_certs ssl_certfile synchronous
        ws_max_size find_user cookie
        to write honcho pre commit install pip printf sha256sum
        """,
    )
)
_EXAMPLES = {
    "ann<U+00A0>",
    "а<Cyrillic>nn",  # noqa: RUF001 (as README has it)
    "area: Imperative sentence.",
    "rediss://user:password@host:6380/0?ssl_ca_certs=/etc/ssl/our-ca.pem",
}


def broken_paths(document: Document) -> list[str]:
    """Return the paths that a document names and that are not there: in the repository, in imcore, beside the document.

    `../` leaves the repository; `.venv/` is there once the product is installed.
    """
    roots = (ROOT, ROOT / "imcore", document.path.parent)
    paths = [code for code in document.code if _PATH.fullmatch(code) and not code.startswith(("/", "../", ".venv/"))]
    return [path for path in paths if not any(list(root.glob(path)) for root in roots)]


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_path_exists(document: Document) -> None:
    assert broken_paths(document) == []


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_program_is_one_that_the_project_installs(document: Document) -> None:
    programs = {code.removeprefix(".venv/bin/") for code in document.code if code.startswith(".venv/bin/")}
    assert programs <= set(PROJECT["project"]["scripts"])


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_link_leads_to_a_file(document: Document) -> None:
    paths = {target: target.partition("#")[0] for target in document.links}
    broken = [target for target, path in paths.items() if not (document.path.parent / path).exists()]
    assert broken == []


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_heading_that_is_linked_exists(document: Document) -> None:
    for target in document.links:
        path, _, anchor = target.partition("#")
        linked = (document.path.parent / path).resolve() if path else document.path
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors


def test_every_readme_is_a_document_here() -> None:
    readmes = [path for top in ("imcore", "cli", "workers", "tests", ".github") for path in files(top, ".md")]
    known = {document.path.resolve() for document in documents()}
    assert {path.resolve() for path in readmes} | {ROOT / "README.md", ROOT / "CHANGELOG.md"} == known


def missing_modules(document: Document) -> list[str]:
    """Return the dotted names that a document gives below `imcore` and that are neither modules nor within one."""
    return [code for code in document.code if _MODULE.fullmatch(code) and not can_be_imported(code)]


def can_be_imported(dotted: str) -> bool:
    module, _, name = dotted.rpartition(".")
    try:
        importlib.import_module(dotted)
    except ImportError:
        return bool(module) and can_be_imported(module) and hasattr(importlib.import_module(module), name)
    return True


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_module_can_be_imported(document: Document) -> None:
    assert missing_modules(document) == []


def calls(document: Document) -> Iterator[tuple[str, Any, str, str | None]]:
    """Yield the calls that a document names: the code, the class, the attribute, and the arguments if it gives some."""
    for code in document.code:
        if not _PATH.fullmatch(code) and (match := _CALL.fullmatch(code)):
            yield code, _OBJECTS[match[1]], match[2], match[3]


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_module_that_python_runs_can_be_found(document: Document) -> None:
    named = [match[1] for code in document.code if (match := re.match(r"python -m ([\w.]+)", code))]
    assert [name for name in named if find_spec(name) is None] == []


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_call_takes_the_arguments_in_the_documents(document: Document) -> None:
    wrong = []
    for code, owner, name, arguments in calls(document):
        attribute = getattr(owner, name, None)
        fields = owner.__init__.__code__.co_names + owner.__init__.__code__.co_varnames
        if attribute is None and name not in fields:
            wrong.append(code)
        elif attribute is not None and arguments and "..." not in arguments and "[" not in arguments:
            given = [each.strip() for each in arguments.split(",")]
            names = list(inspect.signature(attribute).parameters)
            plain = [each for each in given if "=" not in each]
            known = names[1 : 1 + len(plain)] == plain or any(each[0] in "\"'" for each in plain)
            if not known or not {each.partition("=")[0] for each in given if "=" in each} <= set(names):
                wrong.append(code)
    assert wrong == []


def test_readme_names_methods_of_chat() -> None:
    words = Document("README.md").words
    [listed] = re.findall(r"`Chat` also has ([^;]*?) and more;", words)
    names = re.findall(r"`(\w+)`", listed)
    assert len(names) > 8
    assert [name for name in names if not hasattr(Chat, name)] == []


def test_every_public_class_in_use_is_exported() -> None:
    code = "\n".join(block.text for document in documents() for block in document.blocks_in("python"))
    names = {name.strip() for line in re.findall(r"from imcore import (.*)", code) for name in line.split(",")}
    assert names <= set(imcore.__all__)


def variables_of_tests() -> set[str]:
    """Return the variables that tests read."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in files("tests", ".py"))
    return set(re.findall(r"environ(?:\.get\(|\[)\"(IM_[A-Z_]+)\"", text))


def settings() -> set[str]:
    web = {f"IM_WEB_{name.upper()}" for name in WebSettings.__dataclass_fields__}
    return {f"IM_{name.upper()}" for name in Settings.__dataclass_fields__} | web


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_variable_is_read_by_the_product_or_by_tests(document: Document) -> None:
    named = set(_VARIABLE.findall(document.text))
    assert named - settings() - variables_of_tests() == set()


def test_every_variable_of_the_tests_is_explained() -> None:
    assert variables_of_tests() - set(_VARIABLE.findall(Document("tests/README.md").text)) == set()


@cache
def words_of_the_source() -> frozenset[str]:
    """Return every word of the product and of its project file."""
    sources = [*files("imcore", ".py", ".lua"), ROOT / "pyproject.toml"]
    return frozenset(word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))


def unknown_words(code: str) -> list[str]:
    words = re.findall(r"[A-Za-z_]\w*", code)
    return [word for word in words if word not in words_of_the_source() | _NAMES_OF_OTHERS]


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_other_name_is_one_of_the_source(document: Document) -> None:
    """What is neither a path, a command nor a variable is made of words that the source has."""
    names = [code for code in document.code if not (_PATH.fullmatch(code) or _VARIABLE.search(code))]
    names = [code for code in names if not re.match(r"(im|pytest|python -m) ", code) and code not in _EXAMPLES]
    assert {name: words for name in names if (words := unknown_words(name))} == {}


def test_every_name_in_a_picture_is_one_of_the_source() -> None:
    """Names are what has an underscore."""
    [picture, *_] = Document("README.md").blocks_in("")
    names = set(re.findall(r"\w*[a-z]_[a-z]\w*", picture.text))
    assert {"im_send", "im_ack", "group_msgs"} <= names
    assert names - words_of_the_source() == set()


_IN_A_FILE = re.compile(r"`([\w./]+\.(?:py|lua))`((?:[:,] `\w+`)+)")


def test_every_name_that_is_said_to_be_in_a_file_is_there() -> None:
    missing = [
        f"{document.name}: {path}: {name}"
        for document in documents()
        for path, names in _IN_A_FILE.findall(document.prose)
        for name in re.findall(r"`(\w+)`", names)
        if not is_defined(name, places(document, path))
    ]
    assert missing == []


def places(document: Document, path: str) -> list[Path]:
    return [each for root in (ROOT, ROOT / "imcore", document.path.parent) if (each := root / path).is_file()]


def is_defined(name: str, paths: list[Path]) -> bool:
    form = re.compile(rf"(def|class|function) {name}\b|^(local )?\s*{name}\b\s*[:=]|'{name}'", re.MULTILINE)
    return any(form.search(path.read_text(encoding="utf-8")) for path in paths)
