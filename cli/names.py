"""Names as people read them: two different names never look the same.

An ordinary name of any script stays as it is. Marks make the others unmistakable: quotes for a blank at an end or for
a text that looks like a mark; the script, as `<Cyrillic>`, behind letters that could be of another one; and the
number, as `<U+00A0>`, for any other character that looks like another. Letters of one script that only resemble each
other, as l and I, stay.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from imcore.cli import characters
from imcore.model.direct import gid_of, pair_of

DIRECT = "dm:"
"""The prefix of the peer's name, which replaces the gid of a one-to-one chat."""

_OWN_MARKS = {"-", "yes", "no"}
_NUMBER = "<U+"
_LIKE_A_MARK = re.compile("<(?=[A-Z])")
_QUOTED = r"""(?<!\w)(['"])((?:\\.|(?!\1)[^\\\n])*)\1(?!\w)"""
_QUOTED_PATTERN, _QUOTED_OR_BLANKS = re.compile(_QUOTED), re.compile(rf"{_QUOTED}|\s+")

_ACTING = re.compile(f"[{characters.ACTING}]")
_SIGN = re.compile(f"[{characters.SIGNS}]")
_MARK = re.compile(f"[{characters.MARKS}]")
_KEPT = re.compile(f"[{characters.KEPT}]")
_RARE = re.compile(f"[{characters.RARE}]")
_SPELT_OTHERWISE = re.compile(characters.SPELT_OTHERWISE)
# Characters that are visible only with others: parts of an emoji, a keycap, a flag; a joiner that changes letters.
_SEEN = re.compile(
    f"(?<=[{characters.EMOJI}])(?:(?P<style>[\ufe0e\ufe0f])|\u200d(?=[{characters.EMOJI}]))"
    f"|(?<=[{characters.EMOJI}][\ufe0f])\u200d(?=[{characters.EMOJI}])"
    "|(?<=[0-9#*])\ufe0f(?=\u20e3)|(?<=\ufe0f)\u20e3"
    "|(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f"
    f"|(?<=[\u0620-\u06ff\u0750-\u077f])(?<![{characters.ARABIC_END}])\u200c(?=[\u0620-\u06ff\u0750-\u077f])"
    "|(?<=[\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0dca])[\u200c\u200d](?=[\u0900-\u0dff])"
    "|(?<=\u0d4d)\u200c(?=[\u0d00-\u0d7f])"
)
_OWN_VOWEL = re.compile(
    "(?:BENGALI|DEVANAGARI|GUJARATI|GURMUKHI|KANNADA|MALAYALAM|ORIYA|TAMIL|TELUGU) LETTER (?:[A-Z]+ )?[AEIOU]+"
)
_SCRIPTS = {
    "CJK": "HAN",
    "IDEOGRAPHIC": "HAN",
    "KATAKANA-HIRAGANA": "KATAKANA",
    "ARABIC-INDIC": "ARABIC",
    "EXTENDED": "ARABIC",
}
_FIRST = ("LATIN", "CYRILLIC", "GREEK", "HAN")
"""The likelier script, if all letters of a name may be of several; after these by name."""

_WITH_MARKS = {"LATIN", "CYRILLIC", "GREEK"}


def name(text: str) -> str:
    """Return a uid, gid or client_msgid as a table shows it: two that are different never look the same."""
    if text.isascii() and text.replace("_", "").isalnum() and text not in _OWN_MARKS:
        return text
    return f'"{_inside(text, chr(34))}"' if _needs_quotes(text) else marked(text)


def direct(peer: str) -> str:
    """Return the name of a user's one-to-one chat with a peer: `dm:bob`. No group's name and no gid looks so."""
    is_gid = pair_of(f"{DIRECT}{peer}") is not None
    return DIRECT + (f'"{_inside(peer, chr(34))}"' if is_gid else name(peer))


def peer_in(text: str) -> str | None:
    """Return the peer in a chat's name as tables show it, `dm:bob`; None for a gid."""
    return text.removeprefix(DIRECT) if text.startswith(DIRECT) and pair_of(text) is None else None


def to_gid(text: str, uid: str) -> str:
    """Return the gid that a user means by a gid or by `dm:bob`, the chat with bob. Raise InvalidInput."""
    peer = peer_in(text)
    return text if peer is None else gid_of(peer, uid)


def in_sentence(text: str) -> str:
    """Return a sentence with its quoted names marked; the quotes are those of `repr`."""
    return _QUOTED_PATTERN.sub(_marked_quote, text)


def in_one_line(text: str) -> str:
    """Return a sentence on one line with its quoted names marked. Blanks are single, except within quotes."""
    return _QUOTED_OR_BLANKS.sub(lambda match: _marked_quote(match) if match[1] else " ", text).strip()


@lru_cache(maxsize=10_000)
def marked(text: str) -> str:
    """Return a text with ambiguous characters marked: letters by their script, others by their number."""
    return text if text.isascii() else _Marking(text).result()


class _Marking:
    def __init__(self, text: str) -> None:
        self._text = text
        self._parts = {at for match in _SEEN.finditer(text) if _changes_look(match) for at in range(*match.span())}
        self._spelt_otherwise = {match.start() for match in _SPELT_OTHERWISE.finditer(text)}
        self._scripts = [_scripts_of(char) for char in text]
        self._is_composed = unicodedata.is_normalized("NFC", text)
        self._written: list[str] = []
        self._run = ""
        """The characters since the last number."""
        self._foreign = ""
        """The script whose name has to follow the last letters."""

    def result(self) -> str:
        for at, char in enumerate(self._text):
            self._write(at, char)
        self._end_foreign()
        return "".join(self._written)

    def _write(self, at: int, char: str) -> None:
        is_plain = self._is_plain(at, char)
        is_expected = _is_expected(char, self._scripts, at)
        script = self._foreign_script(at, char) if is_plain and not is_expected else ""
        if script != self._foreign and not (is_plain and _is_combining(char)):
            self._end_foreign()
        if is_plain and (is_expected or script):
            self._written.append(char)
            self._run += char
            self._foreign = script or self._foreign
        else:
            self._written.append(f"{_NUMBER}{ord(char):04X}>")
            self._run = ""

    def _end_foreign(self) -> None:
        if self._foreign:
            self._written.append(f"<{self._foreign}>")
            self._foreign = ""

    def _is_plain(self, at: int, char: str) -> bool:
        """Whether no other character or sequence of its script looks like this one here."""
        if at in self._spelt_otherwise:
            return False
        if not (self._is_composed or unicodedata.is_normalized("NFC", self._run + char)):
            return False
        if at in self._parts:
            return bool(self._run)
        return _is_distinct(char) and (not _is_combining(char) or _belongs(char, self._run))

    def _foreign_script(self, at: int, char: str) -> str:
        """Return the script that a mark names for a letter; '' if the mark could mean the letter before it, too."""
        script = _one_script_of(char)
        return "" if script and not self._foreign and self._is_ambiguous_before(at) else script

    def _is_ambiguous_before(self, at: int) -> bool:
        """Whether the unmarked letter before could be of several scripts."""
        marks = 0
        while marks < len(self._run) and _is_combining(self._run[-1 - marks]):
            marks += 1
        return len(self._run) > marks and len(self._scripts[at - 1 - marks]) > 1


def _needs_quotes(text: str) -> bool:
    is_like_mark = text in _OWN_MARKS or text.startswith('"') or _LIKE_A_MARK.search(text) is not None
    has_lost_blanks = text != text.strip(" ") or "  " in text
    return is_like_mark or has_lost_blanks or peer_in(text) is not None


def _inside(text: str, quote: str) -> str:
    for own in ("\\", quote):
        text = text.replace(own, f"\\{own}")
    return _with_numbers_apart(text)


def _with_numbers_apart(text: str) -> str:
    """Return a text marked; what looks like a mark in the text itself gets a backslash."""
    return "\\<".join(map(marked, _LIKE_A_MARK.split(text)))


def _marked_quote(match: re.Match[str]) -> str:
    return f"{match[1]}{_with_numbers_apart(match[2])}{match[1]}"


def _changes_look(match: re.Match[str]) -> bool:
    """Whether a choice of style is visible: a picture's for a text sign, or a text's for a picture."""
    before = match.string[match.start() - 1]
    return match["style"] is None or (unicodedata.east_asian_width(before) == "W") == (match["style"] == "\ufe0e")


def _is_combining(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


@cache
def _is_distinct(char: str) -> bool:
    if char.isascii():
        return True
    is_compatible = unicodedata.normalize("NFKC", char) != char and not _KEPT.match(char)
    if is_compatible or _ACTING.match(char) or _RARE.match(char):
        return False
    kind = unicodedata.category(char)
    if kind[0] == "L":
        return _is_ordinary_letter(char)
    return kind[0] == "M" or kind == "Nd" or _SIGN.match(char) is not None


def _belongs(mark: str, run: str) -> bool:
    """Whether a combining character fits the letter before it, and changes how that looks."""
    base = next((char for char in reversed(run) if not _is_combining(char)), "")
    if not base or mark == run[-1]:
        return False
    if _script_of(mark) == "COMBINING":
        return _MARK.match(mark) is not None and _script_of(base) in _WITH_MARKS
    is_vowel = " VOWEL SIGN " in unicodedata.name(mark) and _OWN_VOWEL.fullmatch(unicodedata.name(run[-1], ""))
    return _script_of(mark) == _script_of(base) and not is_vowel


def _is_ordinary_letter(char: str) -> bool:
    base = _base_of(char)
    script = _script_of(base)
    return base.isascii() or base in characters.LATIN if script == "LATIN" else script not in {"MODIFIER", "ROMAN", ""}


def _is_expected(char: str, scripts: Sequence[frozenset[str]], at: int) -> bool:
    """Whether a character is of the script that the rest of the name suggests.

    The suggestion depends only on the look of a name. So at most one of two names that look the same has it unmarked.
    """
    expected = scripts[at]
    if len(expected) < 2 or (char.isascii() and not char.isalpha()):
        return True
    for other in (*scripts[at + 1 :], *reversed(scripts[:at])):
        expected = expected & other or expected
        if len(expected) == 1:
            break
    likeliest = next((script for script in _FIRST if script in expected), min(expected))
    return _script_of(_base_of(char)) == likeliest


def _one_script_of(char: str) -> str:
    """Return a character's script as a mark names it, if the character is the script's ordinary one with this look."""
    base = _base_of(char)
    script = _script_of(base)
    first = next((each for each in _members().get(base, "") if _script_of(each) == script), "")
    return script.title() if base == first else ""


@cache
def _scripts_of(char: str) -> frozenset[str]:
    """Return the scripts of which a character could be, by its look; no script for a sign."""
    base = _base_of(char)
    kind = unicodedata.category(base)
    of_its_own = frozenset({_script_of(base)} if kind[0] == "L" or (kind == "Nd" and not base.isascii()) else ())
    return frozenset(map(_script_of, _members()[base])) if base in _members() else of_its_own


@cache
def _base_of(char: str) -> str:
    return unicodedata.normalize("NFD", char)[0]


@cache
def _members() -> dict[str, str]:
    return {each: members for members in characters.LOOKALIKES.split() for each in members}


@cache
def _script_of(char: str) -> str:
    """Return the script of a character by its name; Latin for all ASCII."""
    if char.isascii():
        return "LATIN"
    word = unicodedata.name(char, "").partition(" ")[0]
    return _SCRIPTS.get(word, word)
