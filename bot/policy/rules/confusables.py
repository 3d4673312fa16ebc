"""Confusable characters: every letter becomes the plain letter that it looks like; invisible characters are dropped.

After Unicode TR39 (confusable detection, https://www.unicode.org/reports/tr39/), with a small table of our own: the
plain Latin letter for each look-alike. Word lists are normalised in the same way, so that every script stays
comparable. `bot.policy.rules.leetspeak` handles digits and signs that stand for letters.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

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
_ENCLOSED_LETTERS = (
    (0x1F150, 26),
    (0x1F170, 26),
    (0x1F1E6, 26),
)  # letters in circles and squares, and regional indicators (flags)
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\u0640")
_VARIATION_SELECTORS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_KEPT_MARKS = (0, 7, 8, 9)  # combining classes that make another letter: vowel signs, nukta, kana voicing, virama
_MAX_DECOMPOSITION = 8  # a single character that stands for a whole phrase is no letter of a word
_FIRST_MARKED_SCRIPT = (
    0x0590  # scripts from here on have marks that change a letter; in earlier ones they only decorate it
)
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
