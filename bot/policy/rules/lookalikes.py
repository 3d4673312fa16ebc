"""Confusable characters: every letter becomes the plain letter that it looks like; invisible characters are dropped.

After Unicode TR39 (https://www.unicode.org/reports/tr39/), with a small table of our own: the plain Latin letter for
each look-alike. Word lists are normalised in the same way, so that every script stays comparable. In leetspeak a
character of such a text may also be another letter (`4`, `$`), a gap or a boundary.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

_LOOKALIKES = {
    "a": "аαɑɐᴀꓮᎪ",
    "b": "вьβʙƀɓᏴꓐᏏ",
    "c": "сᴄƈꓚᏟɔⲥͻ",
    "d": "ԁԃᴅđɗɖꓓꓒᎠ",
    "e": "еєεɛᴇəǝэҽꓰᎬ",
    "f": "ꜰƒꓝϝ",
    "g": "ɡɢɠցꓖᏀǥ",
    "h": "һнʜħɦհꓧᎻɥⱨ",
    "i": "іιıɩɪɨꓲᎥ",
    "j": "јᴊʝȷꓙᎫյϳ",
    "k": "кκᴋƙꓗᏦʞқҝҟ",
    "l": "ӏʟłɫɭƚꓡᏞ",
    "m": "мᴍɱɯꓟᎷ",
    "n": "пηɴɲŋոπɳƞꓠ",
    "o": "оοσᴏøɵօөθꓳ",
    "p": "рρᴘƥꓑᏢ",
    "q": "ԛզʠɋ",
    "r": "гяʀɾɹꓣᎡ",
    "s": "ѕꜱʂƨꓢᏚ",
    "t": "тτᴛŧƭʈꓔᎢʇ",
    "u": "υսᴜʉʊμꓴ",
    "v": "νᴠѵʋꓦᏙ",
    "w": "ԝωᴡѡшաꓪᎳ",
    "x": "хχҳꓫ",
    "y": "уγʏүұƴɣʎყꓬ",
    "z": "ᴢʐƶʑꓜᏃ",
    "ae": "æ",
    "oe": "œ",
    "3": "зӡʒ",
    "4": "ч",
    "6": "б",
    "ك": "ک",
    "ي": "یى",
    "ه": "ة",
}
_LETTERS = str.maketrans({look: letter for letter, looks in _LOOKALIKES.items() for look in looks})
_BEFORE_DECOMPOSITION = {"ϲ": "c", "Ϲ": "c"}  # their decomposition is a sigma, which looks like another letter
# letters in circles and squares, and regional indicators (flags)
_ENCLOSED_LETTERS = ((0x1F150, 26), (0x1F170, 26), (0x1F1E6, 26))
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\u0640")
_VARIATION_SELECTORS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_KEPT_MARKS = (0, 7, 8, 9)  # combining classes that make another letter: vowel signs, nukta, kana voicing, virama
_MAX_DECOMPOSITION = 8  # a single character that stands for a whole phrase is no letter of a word
# scripts from here on have marks that change a letter; in earlier ones they only decorate it
_FIRST_MARKED_SCRIPT = 0x0590
_KATAKANA = (0x30A1, 0x30F6)
_KANA_OFFSET = 0x60


def normalise_text(text: str) -> str:
    """Return NFKC, case-folded, without invisible characters and decorating marks, look-alikes mapped; in this order.

    Idempotent. Digits become ASCII, katakana becomes hiragana. Lengths change.
    """
    characters: list[str] = []
    base = ""
    for character in "".join(map(_to_plain, text)):
        if unicodedata.category(character)[0] == "M":
            if ord(base or "a") < _FIRST_MARKED_SCRIPT or unicodedata.combining(character) not in _KEPT_MARKS:
                continue
        else:
            base = character
        characters.append(character)
    return unicodedata.normalize("NFC", "".join(characters))


@lru_cache(maxsize=4096)
def _to_plain(character: str) -> str:
    """Return one character as plain letters and marks; empty if it is invisible, a space for any kind of space."""
    code = ord(character)
    category = unicodedata.category(character)
    if category in ("Zs", "Zl", "Zp") or character.isspace():
        return " "
    if character in _INVISIBLE or category in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return ""
    if any(first <= code <= last for first, last in _VARIATION_SELECTORS):
        return ""
    for first, count in _ENCLOSED_LETTERS:
        if first <= code < first + count:
            return chr(ord("a") + code - first)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return _decompose(_BEFORE_DECOMPOSITION.get(character, character)).translate(_LETTERS)


def _decompose(character: str) -> str:
    parts = unicodedata.normalize("NFKD", character)
    if len(parts) > _MAX_DECOMPOSITION:
        return character
    folded_parts = unicodedata.normalize("NFKD", "".join(part for part in parts if not _is_decoration(part)).casefold())
    return "".join(_simplify(part) for part in folded_parts)


def _is_decoration(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" and unicodedata.combining(character) not in _KEPT_MARKS


def _simplify(character: str) -> str:
    """Return hiragana for katakana, ASCII for other digits, nothing for an invisible character."""
    if character in _INVISIBLE:
        return ""
    if _KATAKANA[0] <= ord(character) <= _KATAKANA[1]:
        return chr(ord(character) - _KANA_OFFSET)
    return str(unicodedata.decimal(character)) if unicodedata.category(character) == "Nd" else character


CharacterKind = Literal["letter", "unspaced", "digit", "sign", "space"]

SUBSTITUTES = {
    "0": "o",
    "1": "il",
    "2": "z",
    "3": "e",
    "4": "a",
    "5": "s",
    "6": "bg",
    "7": "t",
    "8": "b",
    "9": "g",
    "@": "a",
    "$": "s",
    "§": "s",
    "€": "e",
    "£": "l",
    "¢": "c",
    "¥": "y",
    "!": "i",
    "|": "il",
    "+": "t",
    "†": "t",
    "×": "x",
    "*": "aeiou",
    "#": "aeiou",
    "v": "u",
}
_SEPARATORS = frozenset(',;:/&()[]{}<>"“”«»')  # these separate words, as a space does
_LIKE_LETTERS = frozenset("@$")  # nobody writes numbers with them
_UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


class CharacterReadings(NamedTuple):
    """`letters`: its readings, itself first; `is_certain`: a true letter, or a sign that is only used for one."""

    kind: CharacterKind
    letters: str
    is_certain: bool


@lru_cache(maxsize=4096)
def read_character(character: str) -> CharacterReadings:
    """Return the readings of a character of a normalised text."""
    kind = _character_kind(character)
    is_certain = kind in ("letter", "unspaced") or character in _LIKE_LETTERS
    return CharacterReadings(kind, "" if kind == "space" else character + SUBSTITUTES.get(character, ""), is_certain)


def _character_kind(character: str) -> CharacterKind:
    if character.isspace() or character in _SEPARATORS:
        return "space"
    category = unicodedata.category(character)
    if category[0] in "LM":
        return "unspaced" if any(first <= ord(character) <= last for first, last in _UNSPACED_SCRIPTS) else "letter"
    return "digit" if category[0] == "N" else "sign"


def word_starts(characters: Sequence[CharacterReadings]) -> tuple[list[bool], list[bool]]:
    """Return for each place whether a word may begin there: strictly, and with digits before it as in `1girl`."""
    strict = [index == 0 or characters[index - 1].kind not in ("letter", "digit") for index in range(len(characters))]
    loose: list[bool] = []
    for index, at_boundary in enumerate(strict):
        loose.append(at_boundary or (characters[index - 1].kind == "digit" and loose[index - 1]))
    return strict, loose


def replace_substitutes(text: str) -> str:
    """Replace digits and signs inside words with the letters that they most likely stand for."""
    return " ".join(
        _to_letters(part) if any(read_character(character).kind == "letter" for character in part) else part
        for part in text.split(" ")
    )


def _to_letters(part: str) -> str:
    return "".join(
        character if read_character(character).kind == "letter" else SUBSTITUTES.get(character, character)[0]
        for character in part
    )
