"""Prompt emphasis: `(word)`, `((word))`, `(word:1.2)`, `[word]`; `\\(` is a literal bracket. Pure.

Syntax and factors follow AUTOMATIC1111's web UI (its wiki, "Attention/emphasis"). Unlike there, unbalanced or empty
brackets are ordinary characters, and so is a number that cannot be a weight. So a smiley, a time or a ratio of sides
does not change a picture by accident.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

STEP = 1.1  # factor of a pair of brackets
STRONGEST = 10.0  # the bound of `engine.job.Concept.weight`
OVERFLOWING = 1e100  # bound on a product of factors, beyond every useful one

# `bot.prompt.emphasis` has the same pattern, so that both parse a prompt alike.
NUMBER = r"[+-]?(?:10(?:\.0{0,6})?|[0-9](?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_TOKEN = re.compile(rf"\\[()\[\]\\]|[()\[\]]|:\s*({NUMBER})\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
_WORDLESS = re.compile(r"[\d\s.,:]*")  # "(4:3)" is a ratio of sides, "(12:30)" a time


class Piece(NamedTuple):
    """A part of a text without its brackets, and the weight of its tokens."""

    text: str
    weight: float


@lru_cache(maxsize=512)
def pieces(text: str) -> Sequence[Piece]:
    """Return the text in order, split where the weight changes; one piece of weight 1 if nothing is emphasised.

    Every text is valid. Nested factors multiply; every weight stays within ±10.
    """
    reading = _Reading()
    for match in _TOKEN.finditer(text):
        reading.take(match[0], match[1])
    told = ((part, weight) for part, weight in zip(reading.texts, reading.weights(), strict=True) if part)
    found = [Piece("".join(part for part, _ in same), weight) for weight, same in groupby(told, lambda each: each[1])]
    return tuple(found) or (Piece("", 1.0),)


def plain(text: str) -> str:
    """Return the text without emphasis, for models that do not weight tokens."""
    return "".join(piece.text for piece in pieces(text))


@dataclass
class _Reading:
    """The parser's state. An open bracket is an entry of its own, which closing makes empty.

    A character costs the same at any depth: factors are noted by span and multiplied once at the end.
    """

    texts: list[str] = field(default_factory=list)
    open: dict[str, list[int]] = field(default_factory=lambda: {"(": [], "[": []})  # entries that are not closed yet
    spans: dict[int, tuple[int, float]] = field(default_factory=dict)  # first entry → end entry, factor
    word: int = -1  # the last entry with a word or a literal bracket in it

    def take(self, mark: str, number: str | None) -> None:
        if number is not None:
            self._close_with(mark, number)
        elif mark in self.open:
            self.open[mark].append(len(self.texts))
            self.texts.append(mark)
        elif mark in (")", "]"):
            self._close(mark, STEP if mark == ")" else 1 / STEP)
        else:
            self._add(mark[1:] if mark[0] == "\\" and len(mark) > 1 else mark)

    def weights(self) -> list[float]:
        """Return the weight of each entry, from the outside in. `most` is what outer spans leave of ±10."""
        found: list[float] = []
        around = [(len(self.texts), 1.0, STRONGEST)]
        for entry in range(len(self.texts)):
            while len(around) > 1 and around[-1][0] <= entry:
                around.pop()
            if entry in self.spans:
                around.append(_within(*around[-1][1:], *self.spans[entry]))
            _, factor, most = around[-1]
            found.append(max(-most, min(most, factor)))
        return found

    def _add(self, text: str) -> None:
        if not _WORDLESS.fullmatch(text):
            self.word = len(self.texts)
        self.texts.append(text)

    def _close_with(self, mark: str, number: str) -> None:
        """Handle `:1.2)`, which is a weight only after a word."""
        at = self._opening("(")
        if at < 0 or max(self.word, self._opening("[")) <= at:
            self._add(mark[:-1])
            self._close(")", STEP)
        else:
            self._close(")", float(number))

    def _close(self, bracket: str, factor: float) -> None:
        """Multiply what the bracket encloses; unclosed brackets inside become characters."""
        at = self._opening("(" if bracket == ")" else "[")
        for same in self.open.values() if at >= 0 else ():
            while same and same[-1] >= at:
                self.word = max(self.word, same.pop())
        if at < 0 or at + 1 == len(self.texts):  # nothing inside: only later marks empty an entry
            self._add(bracket)
        else:
            self.texts[at] = ""
            self.spans[at] = (len(self.texts), factor)

    def _opening(self, kind: str) -> int:
        """Return the nearest open bracket of this kind; -1 if there is none."""
        return self.open[kind][-1] if self.open[kind] else -1


def _within(factor: float, most: float, end: int, own: float) -> tuple[int, float, float]:
    """Return the factor and bound inside a span that ends at `end`.

    Clamping own·w to ±10, multiplying by `factor` and clamping to ±`most` equals one factor and one bound.
    """
    product = max(-OVERFLOWING, min(OVERFLOWING, factor * own))
    return end, product, min(most, abs(factor) * STRONGEST)
