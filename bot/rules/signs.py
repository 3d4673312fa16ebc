"""Leetspeak: each character of a normalised text as itself, another letter (`4`, `$`), a gap or a boundary."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["letter", "unspaced", "digit", "sign", "space"]

STANDS = {
    "0": "o", "1": "il", "2": "z", "3": "e", "4": "a", "5": "s", "6": "bg", "7": "t", "8": "b", "9": "g",
    "@": "a", "$": "s", "§": "s", "€": "e", "£": "l", "¢": "c", "¥": "y", "!": "i", "|": "il", "+": "t", "†": "t",
    "×": "x", "*": "aeiou", "#": "aeiou", "v": "u",
}  # fmt: skip
_PARTING = frozenset(',;:/&()[]{}<>"“”«»')  # these separate words, as a space does
_LIKE_LETTERS = frozenset("@$")  # nobody writes numbers with them
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


class Sign(NamedTuple):
    """`letters`: its readings, itself first; `sure`: a true letter, or a sign that is only used for one."""

    kind: Kind
    letters: str
    sure: bool


@lru_cache(maxsize=4096)
def sign(character: str) -> Sign:
    """Return the readings of a character of a normalised text."""
    kind = _kind(character)
    sure = kind in ("letter", "unspaced") or character in _LIKE_LETTERS
    return Sign(kind, "" if kind == "space" else character + STANDS.get(character, ""), sure)


def _kind(character: str) -> Kind:
    if character.isspace() or character in _PARTING:
        return "space"
    category = unicodedata.category(character)
    if category[0] in "LM":
        return "unspaced" if any(first <= ord(character) <= last for first, last in _UNSPACED) else "letter"
    return "digit" if category[0] == "N" else "sign"


def openings(signs: Sequence[Sign]) -> tuple[list[bool], list[bool]]:
    """Return for each place whether a word may begin there: strictly, and with digits before it as in `1girl`."""
    strict = [place == 0 or signs[place - 1].kind not in ("letter", "digit") for place in range(len(signs))]
    loose: list[bool] = []
    for place, free in enumerate(strict):
        loose.append(free or (signs[place - 1].kind == "digit" and loose[place - 1]))
    return strict, loose


def unsigned(text: str) -> str:
    """Replace digits and signs inside words with the letters that they most likely stand for."""
    return " ".join(
        _lettered(part) if any(sign(one).kind == "letter" for one in part) else part for part in text.split(" ")
    )


def _lettered(part: str) -> str:
    return "".join(one if sign(one).kind == "letter" else STANDS.get(one, one)[0] for one in part)
