"""Leetspeak: each character of a normalised text as itself, another letter (`4`, `$`), a gap or a boundary."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

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
