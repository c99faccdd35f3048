"""The characters that act on a terminal, and those that look like others: data for `output` and `names`.

The sets are written as a class of a regular expression has them.
"""

# ruff: noqa: RUF001 (they look alike: that is the point)

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

SIGNS = (
    "\xa1-\xa3\xa5-\xa7\xa9\xab\xae\xb0\xb1\xb6\xb7\xbb\xbf\xf7\u060c\u061b\u061f\u0964\u0965\u20ac\u3001\u3002"
    "\u3008-\u3011\u30fb\u2190-\u21ff\u231a\u231b\u23e9-\u23f3\u25a0-\u25ca\u25cf\u25fb-\u2767\u2794-\u27bf\u2934\u2935"
    "\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a\U0001f1e6-\U0001f1ff"
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7f0\U0001f90c-\U0001faff"
)
"""The signs beyond ASCII that look like no other: punctuation of many scripts, arrows, stars, emoji."""

LATIN = "ÆæŒœØøẞßÞþðĐđĦħıŁłŊŋŦŧƁɓƊɗɖƎǝƏəƐɛƆɔƑƒƓɠƔɣƘƙƝɲƱʊƲʋƳƴɨƗʉɄ"
"""The Latin letters that are neither ASCII nor ASCII with marks, and are in use: phonetic ones look like them."""

MARKS = "\u0300-\u0304\u0306-\u030c\u031b\u0323-\u0328\u032d\u032e\u0330\u0331"
"""The combining characters of Latin, Greek and Cyrillic that are in use."""

KEPT = "\u0587\u0e33\u0eb3\u0edc\u0edd\u3131-\u3163"
"""Letters in use that Unicode calls compatible with a sequence of others: of Armenian, Thai, Lao and Korean."""

SPELT_OTHERWISE = (
    "(?<=\u0565)\u0582|\u0e4d(?=[\u0e48-\u0e4b]*\u0e32)|\u0ecd(?=[\u0ec8-\u0ecb]*\u0eb2)|(?<=\u0eab)[\u0e99\u0ea1]"
    "|(?<=\u0e40)\u0e40|(?<=\u0ec0)\u0ec0|(?<=\u0964)\u0964|(?<=[\u0d07\u0d12])\u0d57"
    "|[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]"
)
"""A regular expression of what makes the same picture as one letter, one of KEPT or another."""

RARE = (
    "\u04c0\u04cf\u05f0-\u05f2\u066e\u066f\u06a1\u08bb-\u08bd\u2de0-\u2dff"
    "\u4e36\u4e3f\u4ebb\u56d7\ua4f8-\ua4fd\ua640-\ua69f"
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
and those that another rule of `imcore.cli.names` marks already.
"""
