"""Names where people look: ordinary ones as they are, and never two different ones that look the same."""

# ruff: noqa: RUF001 (they look alike: that is the point)

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imcore.cli.names import direct, in_one_line, in_sentence, name
from imcore.cli.output import safe
from imcore.model.direct import gid_of

# Letters that look alike, written down here anew: this is not compared with the classes of the product.
LOOK_ALIKE = [
    "aаα", "cс", "eе", "iі", "jј", "oоοօ", "pрρ", "sѕ", "xх", "yу", "BВΒ", "HНΗ", "KКΚ\u212a", "MМΜ", "TТΤ", "ГΓ",
    "ПΠ", "力カ", "口ロ", "夕タ", "二ニ", "へヘ", "అಅ", "దದ", "จຈ", "टਟ", "å\u212b", "µμ", "-\u2010\u2013\u2212",
    "'\u2019\u02bc", " \xa0\u2003\u3000", "oｏ𝐨", "ɑa", "ﬁ", "é", "ё", "й", "가", "ंँ", "\u064e\u0301", "\u0e33",
]  # fmt: skip
ORDINARY = "bdfhnrвжнияю山木さウमన1_"
PARTS = [*"".join(LOOK_ALIKE), *ORDINARY, "\u0301", "\u0308", "\u0306", "\u200b", "\u200d", "\ufe0f", "👩", "💻", "❤"]
OWN_MARKS = [
    "-",
    "yes",
    "no",
    '"',
    "\\",
    "<U+",
    "<U+0430>",
    "<Cyrillic>",
    "<Latin>",
    "<U+00A0>",
    "dm:",
    "dm:3:ann:bob",
    "''",
    "  ",
]
TRICKY = st.lists(st.sampled_from([*PARTS, *OWN_MARKS]), min_size=1, max_size=6).map("".join)


def _variants(char: str) -> list[str]:
    """Return what looks like a character: of other scripts, in pieces, with something that is not seen."""
    group = next((group for group in LOOK_ALIKE if char in group), char)
    pieces = [unicodedata.normalize(form, each) for each in group for form in ("NFC", "NFD", "NFKC", "NFKD")]
    return [*dict.fromkeys([*group, *pieces]), f"{char}\u200b", f"{char}\u2060"]


TWINS = st.lists(
    st.sampled_from(PARTS).flatmap(lambda char: st.tuples(*[st.sampled_from(_variants(char))] * 2)),
    min_size=1,
    max_size=6,
).map(lambda pairs: ("".join(one for one, _ in pairs), "".join(other for _, other in pairs)))


def skeleton(text: str) -> str:
    """Return the same for texts that look the same."""
    text = unicodedata.normalize("NFKD", text).replace("\u200b", "").replace("\u2060", "")
    classes = {char: group[0] for group in LOOK_ALIKE for char in group if len(group) > 1}
    return unicodedata.normalize("NFKD", "".join(classes.get(char, char) for char in text))


@given(TWINS)
@example(("аа", "aa"))
@example(("анна", "aннa"))
@example(("カナ", "力ナ"))
@example(("Bе", "Ве"))
@example(("naа", "nаа"))
@example(("Bepa Сара", "Вера Сара"))
@example(("ẹ̈е", "ё̣е"))
@example(("\u0e33", "\u0e4d\u0e32"))
def test_two_names_never_look_the_same(twins: tuple[str, str]) -> None:
    one, other = twins

    assert (skeleton(name(one)) == skeleton(name(other))) == (one == other)


@given(TRICKY, TRICKY)
@example("а ", "<U+0430> ")
@example('"ann "', "ann ")
@example("сара", "capa<Cyrillic>")
@example("\\<U+0430>", "<U+0430>")
def test_our_own_marks_are_never_taken_for_a_name(one: str, other: str) -> None:
    assert (skeleton(name(one)) == skeleton(name(other))) == (one == other)
    assert name(one) not in {"-", "yes", "no"}


@given(TRICKY, TRICKY)
@example("3:ann:bob", "dm:3:ann:bob")
@example("bob", "dm:bob")
def test_a_one_to_one_chat_is_never_taken_for_a_gid(peer: str, gid: str) -> None:
    assert skeleton(direct(peer)) != skeleton(name(gid))
    assert direct(peer) != name(gid_of("ann", peer))


@given(TRICKY)
def test_a_shown_name_has_no_character_that_acts_or_hides(text: str) -> None:
    assert safe(name(text)) == name(text)
    assert "\u200b" not in name(text)


def test_the_seven_names_look_different() -> None:
    names = ["ann", "ann ", "ann\xa0", "ann\u200b", "аnn", "jos\xe9", "jose\u0301"]

    assert [name(each) for each in names] == [
        "ann", '"ann "', "ann<U+00A0>", "ann<U+200B>", "а<Cyrillic>nn", "jos\xe9", "jose<U+0301>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        *("ann", "user-1", "ann@example.org", "o'neil", "#ubuntu", "a b", "550e8400-e29b", "a<b", "x_y", "Ann (work)"),
        *("José", "Jörg Strauß", "Łukasz", "Nguyễn Đặng", "Kjær", "Þór", "Işıl", "Ọlá", "n̈", "Əli"),
        *("анна", "Москва", "ёлка", "Саша", "Ivan Анна", "Мухаммад", "Νίκος", "Ἀθῆναι", "Սևակ", "ნინო"),
        *("山田", "佐々木", "山口さくら", "東京タワー", "タロウ", "約翰·史密斯", "ジョン・スミス", "김철수", "ㅋㅋ"),
        *("محمد", "علی", "علی\u200cرضا", "غرفة ١", "محمد1", "יוסי", "שרה"),
        *("नेहा", "क्\u200dष", "গীতা", "తెలుగు", "ಕನ್ನಡ", "தமிழ்", "മലയാളം", "සිංහල", "ไทย", "น้ำ"),
        *("ລາວ", "မြန်မာ", "ខ្មែរ", "አማርኛ"),
        *("👩\u200d💻", "👨🏽\u200d🦰", "❤\ufe0f", "🏳\ufe0f\u200d🌈", "1\ufe0f\u20e3", "🇪🇺", "★ann★", "\U0001fae8"),
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        gid_of("ann", "bob"),
        gid_of("a" * 100, "b" * 100),
    ],
)  # fmt: skip
def test_ordinary_names_of_every_script_stay_as_they_are(text: str) -> None:
    assert name(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" ann", '" ann"'),
        ("a  b", '"a  b"'),
        ("-", '"-"'),
        ("yes", '"yes"'),
        ("no", '"no"'),
        ('"x"', '"\\"x\\""'),
        ("dm:bob", '"dm:bob"'),
        ("a<U+0430>", '"a\\<U+0430>"'),
        ("аnn ", '"а<Cyrillic>nn "'),
        ("сара", "сара<Cyrillic>"),
        ("Вера Ан", "Вера Ан"),
        ("Вера Сара", "Вера<Cyrillic> Сара<Cyrillic>"),
        ("naа", "na<U+0430>"),
        ("mаa", "mа<Cyrillic>a"),
        ("mаа", "mаа<Cyrillic>"),
        ("nаа", "n<U+0430>а<Cyrillic>"),
        ("сα", "с<Cyrillic>α<Greek>"),
        ("ёе́", "ёе́<Cyrillic>"),
        ("ёе", "ёе<Cyrillic>"),
        ("q\u0307е", "q\u0307<U+0435>"),
        ("bob<Cyrillic>", '"bob\\<Cyrillic>"'),
        ("aннa", "a<Latin>ннa<Latin>"),
        ("\u212bke", "<U+212B>ke"),
        ("\u212aevin", "<U+212A>evin"),
        ("ﬁn", "<U+FB01>n"),
        ("𝐚nn", "<U+1D41A>nn"),
        ("ａnn", "<U+FF41>nn"),
        ("a–b", "a<U+2013>b"),
        ("a\u2011b", "a<U+2011>b"),
        ("o\u2019neil", "o<U+2019>neil"),
        ("a\u2215b", "a<U+2215>b"),
        ("ɑnn", "<U+0251>nn"),
        ("ǃx", "<U+01C3>x"),
        ("οnn", "ο<Greek>nn"),
        ("Ꭺnn", "Ꭺ<Cherokee>nn"),
        ("b٥b", "b<U+0665>b"),
        ("日本\u3000語", "日本<U+3000>語"),
        ("口コミ", "口<Han>コミ"),
        ("q\u0307\u0323", "q\u0307<U+0323>"),
        ("ค\u0e4d\u0e32", "ค<U+0E4D>\u0e32"),
        ("\u0939\u093f\u093f", "हि<U+093F>"),
        ("\u0905\u093e", "अ<U+093E>"),
        ("\u1112\u1161", "<U+1112><U+1161>"),
        ("👍\ufe0f", "👍<U+FE0F>"),
        ("ann\ufe0f", "ann<U+FE0F>"),
        ("را\u200cن", "را<U+200C>ن"),
        ("\u0e40\u0e40", "เ<U+0E40>"),
        ("a\xd7b", "a<U+00D7>b"),
        ("\xd0an", "<U+00D0>an"),
        ("x\u2800", "x<U+2800>"),
        ("\ue000", "<U+E000>"),
        ("\u0378", "<U+0378>"),
        ("\u2421", "<U+2421>"),
        ("ann\u202e", "ann<U+202E>"),
    ],
)
def test_ambiguous_characters_are_marked(text: str, shown: str) -> None:
    assert name(text) == shown


def test_a_one_to_one_chat_has_the_name_of_the_peer() -> None:
    assert direct("bob") == "dm:bob"
    assert direct("bob ") == 'dm:"bob "'
    assert direct("3:ann:bob") == 'dm:"3:ann:bob"'
    assert direct("bоb") == "dm:b<U+043E>b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'аnn' is in no group", "'а<Cyrillic>nn' is in no group"),
        ("'a<U+0430>' and 'jose\u0301'", "'a\\<U+0430>' and 'jose<U+0301>'"),
        ("the other's \"o'neil–\" is not", "the other's \"o'neil<U+2013>\" is not"),
        ("it's – аnn", "it's – аnn"),
    ],
)
def test_names_are_marked_where_a_sentence_quotes_them(text: str, shown: str) -> None:
    assert in_sentence(text) == shown


def test_a_sentence_becomes_one_line_except_its_quotes() -> None:
    assert in_one_line(" no\n answer  to 'a  b'\tor\xa0'a b' ") == "no answer to 'a  b' or 'a b'"


@given(TWINS)
def test_quoted_names_never_look_the_same(twins: tuple[str, str]) -> None:
    one, other = (in_one_line(f"{each!r} is in no group") for each in twins)

    assert (skeleton(one) == skeleton(other)) == (twins[0] == twins[1])
