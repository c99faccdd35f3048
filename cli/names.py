"""Names as people read them: two different names never look the same.

An ordinary name of any script stays as it is. Marks make the others unmistakable: quotes for a blank at an end or for
a text that looks like a mark; the script, as `<Cyrillic>`, behind letters that could be of another one; and the
number, as `<U+00A0>`, for any other character that looks like another. Letters of one script that only resemble each
other, as l and I, stay.
"""

# ruff: noqa: RUF001 (characters that look alike: that is the point)

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from imcore.errors import InvalidInput
from imcore.model.direct import gid_of, pair_of

DIRECT = "dm:"
"""The prefix of the peer's name, which replaces the gid of a one-to-one chat."""

# Sets of characters, written as a class of a regular expression has them.

ACTING = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001345f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Characters that act instead of being seen: controls (C0, DEL, C1), lone surrogates, line and paragraph separators,
and every default ignorable code point of Unicode (zero-width, bidirectional, tags, fillers, variation selectors), with
the annotation and hieroglyph controls."""

EMOJI = "\xa9\xae\u203c\u2049\u2100-\u27bf\u2900-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
"""The ranges of emoji, with other signs among them."""

_SIGN = re.compile(
    "[\xa1-\xa3\xa5-\xa7\xa9\xab\xae\xb0\xb1\xb6\xb7\xbb\xbf\xf7\u060c\u061b\u061f\u0964\u0965\u20ac\u3001\u3002"
    "\u3008-\u3011\u30fb\u2190-\u21ff\u231a\u231b\u23e9-\u23f3\u25a0-\u25ca\u25cf\u25fb-\u2767\u2794-\u27bf\u2934\u2935"
    "\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a\U0001f1e6-\U0001f1ff"
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7f0\U0001f90c-\U0001faff]"
)
"""The signs beyond ASCII that look like no other: punctuation of many scripts, arrows, stars, emoji."""

LATIN = "ÆæŒœØøẞßÞþðĐđĦħıŁłŊŋŦŧƁɓƊɗɖƎǝƏəƐɛƆɔƑƒƓɠƔɣƘƙƝɲƱʊƲʋƳƴɨƗʉɄ"
"""The Latin letters that are neither ASCII nor ASCII with marks, and are in use: phonetic ones look like them."""

_MARK = re.compile("[\u0300-\u0304\u0306-\u030c\u031b\u0323-\u0328\u032d\u032e\u0330\u0331]")
"""The combining characters of Latin, Greek and Cyrillic that are in use."""

_KEPT = re.compile("[\u0587\u0e33\u0eb3\u0edc\u0edd\u3131-\u3163]")
"""Letters in use that Unicode calls compatible with a sequence of others: of Armenian, Thai, Lao and Korean."""

_SPELT_OTHERWISE = re.compile(
    "(?<=\u0565)\u0582|\u0e4d(?=[\u0e48-\u0e4b]*\u0e32)|\u0ecd(?=[\u0ec8-\u0ecb]*\u0eb2)|(?<=\u0eab)[\u0e99\u0ea1]"
    "|(?<=\u0e40)\u0e40|(?<=\u0ec0)\u0ec0|(?<=\u0964)\u0964|(?<=[\u0d07\u0d12])\u0d57"
    "|[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]"
)
"""Sequences that make the same picture as one letter, one of _KEPT or another."""

_RARE = re.compile(
    "[\u04c0\u04cf\u05f0-\u05f2\u066e\u066f\u06a1\u08bb-\u08bd\u2de0-\u2dff"
    "\u4e36\u4e3f\u4ebb\u56d7\ua4f8-\ua4fd\ua640-\ua69f]"
)
"""Letters, seldom used, that look like others of their own script, or like punctuation."""

ARABIC_END = (
    "\u0622-\u0625\u0627\u0629\u062f-\u0632\u0648\u0671-\u0673\u0675-\u0677\u0688-\u0699\u06c0\u06c3-\u06cb\u06cd\u06cf"
    "\u06d2\u06d3\u06d5"
)
"""The Arabic letters that are never joined to the next: no joiner after them is seen."""

LOOKALIKES = """
!ⵑ ?Ꭾॽ <ᐸᚲ >ᐳ -Ⲻⲻ 'ߴߵᑊᛌ .٠۰ 2ϨᒿꙄꛯ 3ЗӠ३૩ⲜⳄⳌ𑣊𖼻 4Ꮞ𑢯 5𑢻 6ϬᏮⳒⳓⳜ𑣕 7𐓒𑣆 8৪੪𐌚 9৭੧୨൭Ⳋⳋ𑢬𑣌𑣖 AΑАᎪᗅꓮ𐊠𖽀 BΒВᏴᗷⲂꓐ𐊂𐊡𐌁
CСҪᏟⲤꓚ𐊢𐌂𐐕𐔜𑣩𑣲 DᎠᗞᗪꓓ EΕЕᎬⴹꓰ𐊆𑢦𑢮 FϜᖴꓝ𐊇𐊥𐔥𑢢𑣂 GԌᏀᏳꓖ HΗНᎻᕼⲎꓧ𐋏 IΙІᛁⲒⵏꓲ𐊊𐌉𐌠𖼨 JͿЈᎫᒍꓙ KΚКᏦᛕⲔꓗ𐔘 LᏞᒪⳐꓡ𐐛𐔦𑢣𑢲𖼖 MΜϺМᎷᗰᛖⲘꓟ𐊰𐌑
NΝⲚꓠ𐔓 OΟОՕ߀ଠ೦ዐⲞⵔꓳ𐊒𐊫𐐄𐓂𐔖𑢵𑣠 PΡРᏢᑭⲢⳎꓑ𐊕 Qⵕ RᎡᏒᖇꓣ𐒴𖼵 SЅՏᏕᏚꓢ𐊖𐐠𖼺 TΤТᎢⲦꓔ𐊗𐊱𐌕𑢼𖼊 UՍሀᑌꓴ𐓎𑢸𖽂 VѴ٧۷Ꮩᐯⴸꓦꛟ𐔝𑢠𖼈 WԜᎳᏔꓪ𑣦𑣯
XΧХᚷⲬⵝꓫ𐊐𐊴𐌗𐌢𐔧𑣬 YΥУҮᎩᎽⲨꓬ𐊲𑢤𖽃 ZΖᏃꓜ𐋵𑢩𑣥 aαа bЬᏏᑲᖯ cсҫငၚⲥꮯ𐐽 dԁᏧᑯꓒ eеҽ fք gց hһհᏂ iιіւᎥⲓꙇꭵ𑣃 jϳј lӏוןا١۱ߊ nոռ
oοϭоօסه٥ھہە۵०০੦૦୦௦౦ഠ൦๐໐ဝ၀ჿ០ⲟ𐐬𐓪𑓐𑣈𑣗 pρϸрⲣⳏ qԛգզ rⲅꮁ sѕടꮪ𐑈𑣁 uυս𐓶𑣘 vνѵꮩ𑜆𑣀 wԝѡաⲽꮃ𑜊𑜎𑜏 xхᕁᕽ yγуүყⲩ𑣜 zꮓ𑣄 ÞϷ ßβᏰ
ƆϽꓛ ƐԐᏋ ɛεԑ ΘѲӨ θѳө Øⵁ ħћ ÆӔ æӕ ƏӘ əә ΓГᎱᒥⲄ ΔᐃⲆⵠ ΞⲶ ΠПⲠ Σⵉ ΦФⲪ ΨѰⲮ Ωᘯᘵ кκⲕꮶ πⲡ χⲭ ψѱⲯ ωⲱ ЧϤ उਤ टਟ ठਠ ढਫ
पਧ भਮ मਸ वਕ हਵ २૨ર ४૪ ८૮ ঘ𑒒 চ𑒔 জ𑒖 ঞ𑒘 ট𑒙 ড𑒛 ণ𑒪 ত𑒞 থ𑒟 দ𑒠 ধ𑒡 ন𑒢 প𑒣 ব𑒩 ম𑒧 য𑒨 র𑒫 ল𑒝 ষ𑒭 স𑒮 உഉ ணണ மഥ ழഴ வഖ ஶശ
ஜജ అಅ ఆಆ ఇಇ ఐಐ ఒಒ ఓಓ ఔಔ గಗ జಜ ఝಝ ఞಞ టಟ ణಣ దದ నನ యಯ రರ ఱಱ లಲ ళಳ ౧೧ ౨೨ ౯೯ จຈ บບ ปປ ฝຝ พພ ฟຟ ยຍ へヘ 一ーㅡ
丨ㅣ 二ニ 八ハ 力カ 卜ト 口ロ 夕タ 工エ
"""
"""Letters and digits of different scripts that look alike, a class each; its first member is the ordinary one.

After the confusable characters of Unicode (UTS 39), but for those of one script, those that only resemble each other,
and those that another rule marks already.
"""

_OWN_MARKS = {"-", "yes", "no"}
_NUMBER = "<U+"
_LIKE_A_MARK = re.compile("<(?=[A-Z])")
_QUOTED = r"""(?<!\w)(['"])((?:\\.|(?!\1)[^\\\n])*)\1(?!\w)"""
_QUOTED_PATTERN, _QUOTED_OR_BLANKS = re.compile(_QUOTED), re.compile(rf"{_QUOTED}|\s+")

_ACTING = re.compile(f"[{ACTING}]")
# Characters that are visible only with others: parts of an emoji, a keycap, a flag; a joiner that changes letters.
_SEEN = re.compile(
    f"(?<=[{EMOJI}])(?:(?P<style>[\ufe0e\ufe0f])|\u200d(?=[{EMOJI}]))"
    f"|(?<=[{EMOJI}][\ufe0f])\u200d(?=[{EMOJI}])"
    "|(?<=[0-9#*])\ufe0f(?=\u20e3)|(?<=\ufe0f)\u20e3"
    "|(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f"
    f"|(?<=[\u0620-\u06ff\u0750-\u077f])(?<![{ARABIC_END}])\u200c(?=[\u0620-\u06ff\u0750-\u077f])"
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


def gid_alone(text: str) -> str:
    """Return a gid that is given without a user. Raise InvalidInput for `dm:bob`."""
    if (peer := peer_in(text)) is not None:
        raise InvalidInput(f"{text!r} does not say whose chat with {peer!r} is meant: its gid is in `im group list`")
    return text


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
    return base.isascii() or base in LATIN if script == "LATIN" else script not in {"MODIFIER", "ROMAN", ""}


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
    return {each: members for members in LOOKALIKES.split() for each in members}


@cache
def _script_of(char: str) -> str:
    """Return the script of a character by its name; Latin for all ASCII."""
    if char.isascii():
        return "LATIN"
    word = unicodedata.name(char, "").partition(" ")[0]
    return _SCRIPTS.get(word, word)
