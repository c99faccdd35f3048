"""Names where people look: two that are different never look the same.

An ordinary name of any script stays as it is. What cannot be told apart is marked: a blank at an end and what could be
taken for our own marks by quotes, letters that could as well be of another script by the name of theirs behind them, as
`<Cyrillic>`, any other character that looks like another one by its number, as `<U+00A0>`. Letters of one script that
only resemble each other, as l and I, stay.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from imcore.cli import characters
from imcore.model.direct import pair_of

DIRECT = "dm:"
"""What the name of the other stands behind, instead of the gid of a one-to-one chat."""

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
# Parts of what is seen: of an emoji, a keycap, a flag; and a joiner that changes how the letters beside it look.
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
"""Of several scripts that all letters of a name may be of, the likelier one; after these by name."""

_WITH_MARKS = {"LATIN", "CYRILLIC", "GREEK"}


def name(text: str) -> str:
    """Return a uid, gid or client_msgid as a table shows it: two that are different never look the same."""
    if text.isascii() and text.replace("_", "").isalnum() and text not in _OWN_MARKS:
        return text
    return f'"{_inside(text, chr(34))}"' if _needs_quotes(text) else marked(text)


def direct(peer: str) -> str:
    """Return what a user's one-to-one chat with a peer is called: `dm:bob`. No group and no gid looks so."""
    is_gid = pair_of(f"{DIRECT}{peer}") is not None
    return DIRECT + (f'"{_inside(peer, chr(34))}"' if is_gid else name(peer))


def in_sentence(text: str) -> str:
    """Return a sentence with the names marked that stand in it between quotes, as `repr` writes them."""
    return _QUOTED_PATTERN.sub(_marked_quote, text)


def in_one_line(text: str) -> str:
    """Return a sentence on one line, with one blank between words, but as they are between quotes; names marked."""
    return _QUOTED_OR_BLANKS.sub(lambda match: _marked_quote(match) if match[1] else " ", text).strip()


@lru_cache(maxsize=10_000)
def marked(text: str) -> str:
    """Return a text with what cannot be told from others marked: letters by their script, the rest by its number."""
    if text.isascii():
        return text
    seen = {at for match in _SEEN.finditer(text) if _changes_look(match) for at in range(*match.span())}
    otherwise = {match.start() for match in _SPELT_OTHERWISE.finditer(text)}
    scripts = [_scripts_of(char) for char in text]
    is_composed = unicodedata.is_normalized("NFC", text)
    shown: list[str] = []
    run = ""  # what stands before as it is
    foreign = ""  # the script that is to be said of the letters before
    for at, char in enumerate(text):
        stays = is_composed or unicodedata.is_normalized("NFC", run + char)
        stays = stays and at not in otherwise and bool(run if at in seen else _is_plain(char, run))
        is_expected = _wins(char, scripts, at)
        script = "" if is_expected or not stays else _one_script_of(char)
        if foreign and script != foreign and not (stays and unicodedata.category(char)[0] == "M"):
            shown.append(f"<{foreign}>")
            foreign = ""
        elif script and not foreign and _may_belong_to_it(run, scripts[:at]):
            script = ""
        if stays and (is_expected or script):
            shown.append(char)
            run += char
            foreign = script or foreign
        else:
            shown.append(f"{_NUMBER}{ord(char):04X}>")
            run = ""
    return "".join(shown) + (foreign and f"<{foreign}>")


def _needs_quotes(text: str) -> bool:
    is_like_mark = text in _OWN_MARKS or text.startswith('"') or _LIKE_A_MARK.search(text) is not None
    is_like_direct = text.startswith(DIRECT) and pair_of(text) is None
    has_lost_blanks = text != text.strip(" ") or "  " in text
    return is_like_mark or is_like_direct or has_lost_blanks


def _inside(text: str, quote: str) -> str:
    for own in ("\\", quote):
        text = text.replace(own, f"\\{own}")
    return _with_numbers_apart(text)


def _with_numbers_apart(text: str) -> str:
    """Return a text marked, and what looks like a mark in it as what it is."""
    return "\\<".join(map(marked, _LIKE_A_MARK.split(text)))


def _marked_quote(match: re.Match[str]) -> str:
    return f"{match[1]}{_with_numbers_apart(match[2])}{match[1]}"


def _changes_look(match: re.Match[str]) -> bool:
    """Whether a choice of style is seen: not that of a picture for what is one, nor of text for what is not."""
    before = match.string[match.start() - 1]
    return match["style"] is None or (unicodedata.east_asian_width(before) == "W") == (match["style"] == "\ufe0e")


def _is_plain(char: str, run: str) -> bool:
    """Whether no other character of its script, nor a sequence, looks like this one, after what stands before."""
    return _stands_out(char) and (unicodedata.category(char)[0] != "M" or _belongs(char, run))


@cache
def _stands_out(char: str) -> bool:
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
    """Whether a combining character is one of the letter that it stands on, and changes how that looks."""
    base = next((char for char in reversed(run) if unicodedata.category(char)[0] != "M"), "")
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


def _wins(char: str, scripts: Sequence[frozenset[str]], at: int) -> bool:
    """Whether a character is of the script that its place in the name lets one expect.

    That follows from how the name looks alone: so of two names that look the same one at most has it unmarked.
    """
    expected = scripts[at]
    if len(expected) < 2 or (char.isascii() and not char.isalpha()):
        return True
    for other in (*scripts[at + 1 :], *reversed(scripts[:at])):
        expected = expected & other or expected
        if len(expected) == 1:
            break
    return _script_of(_base_of(char)) == min(expected, key=_order)


def _one_script_of(char: str) -> str:
    """Return a character's script as a mark says it, if it is the ordinary one of those in it that look so."""
    base = _base_of(char)
    script = _script_of(base)
    first = next((each for each in _members().get(base, "") if _script_of(each) == script), "")
    return script.title() if base == first else ""


def _may_belong_to_it(run: str, before: Sequence[frozenset[str]]) -> bool:
    """Whether a letter that stands unmarked right before could be taken for one of which the mark tells, too."""
    marks = len(run) - len(run.rstrip("".join(char for char in run if unicodedata.category(char)[0] == "M")))
    return len(run) > marks and len(before[-1 - marks]) > 1


def _order(script: str) -> tuple[int, str]:
    return (_FIRST.index(script) if script in _FIRST else len(_FIRST)), script


@cache
def _scripts_of(char: str) -> frozenset[str]:
    """Return the scripts in which a character could be, by its look; none for what belongs to no script."""
    base = _base_of(char)
    kind = unicodedata.category(base)
    of_its_own = frozenset({_script_of(base)} if kind[0] == "L" or (kind == "Nd" and not base.isascii()) else ())
    return _classes().get(base, of_its_own)


@cache
def _base_of(char: str) -> str:
    """Return the letter of a letter with marks."""
    return unicodedata.normalize("NFD", char)[0]


@cache
def _classes() -> dict[str, frozenset[str]]:
    return {each: frozenset(map(_script_of, members)) for each, members in _members().items()}


@cache
def _members() -> dict[str, str]:
    """Return for each lookalike the class that it is of."""
    return {each: members for members in characters.LOOKALIKES.split() for each in members}


@cache
def _script_of(char: str) -> str:
    """Return the script of a character by its name; of what is in ASCII, Latin."""
    if char.isascii():
        return "LATIN"
    word = unicodedata.name(char, "").partition(" ")[0]
    return _SCRIPTS.get(word, word)
