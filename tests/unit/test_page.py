"""The page's two files: what can be said of them without a browser."""

import re
from importlib import resources

PAGE = resources.files("imcore.web") / "page"
HTML = (PAGE / "index.html").read_text(encoding="utf-8")
SCRIPT = (PAGE / "imcore.js").read_text(encoding="utf-8")


def strings(language: str) -> dict[str, str]:
    """The table of a language: key and expression."""
    [table] = re.findall(rf"^  {language}: {{\n(.*?)^  }},", SCRIPT, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^    (\w+):\s+(.*?),$(?=\n    \w|\n\Z)", table, re.MULTILINE | re.DOTALL))


def test_both_languages_have_all_strings() -> None:
    english, chinese = strings("en"), strings("zh")
    assert len(english) > 50
    assert english.keys() == chinese.keys()
    for key, text in english.items():  # the same values go into both
        assert set(re.findall(r"\$\{(\w+)", text)) >= set(re.findall(r"\$\{(\w+)", chinese[key])) - {"n", "all"}
        assert not re.search(r"[\u4e00-\u9fff]", text)
        assert re.search(r"[\u4e00-\u9fff]", chinese[key]) or key == "heard"


def test_each_string_is_used_and_each_that_is_used_is_there() -> None:
    keys = strings("en").keys()
    named = set(re.findall(r'data-(?:text|label|hint)="(\w+)"', HTML)) | set(re.findall(r"\bT\.(\w+)", SCRIPT))
    states = {f"state_{state}" for state in ("online", "connecting", "offline", "unauthorized")}
    assert named | states == set(keys)


def test_the_page_asks_no_other_host_and_needs_no_build() -> None:
    for text in (HTML, SCRIPT):
        hosts = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
        assert hosts == set()
    assert re.findall(r'<script [^>]*src="([^"]*)"', HTML) == ["imcore.js"]
    assert re.findall(r"^import .*|\bfrom '.*", SCRIPT, re.MULTILINE) == []


def test_the_page_keeps_its_security_policy() -> None:
    assert HTML.count("<style>") == 1
    assert re.findall(r"\son\w+=|\sstyle=|javascript:", HTML) == []
    for unsafe in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "cssText",
    ):
        assert unsafe not in SCRIPT
