"""Words that weigh more or less: `(word)`, `((word))`, `(word:1.2)`, `[word]`, `\\(` for a bracket that is meant.

The syntax and its factors are those of AUTOMATIC1111's web UI (its wiki, "Attention/emphasis"). Unlike there, brackets
that are never closed, closed without being open, or empty are ordinary characters, and so is a number that cannot be a
weight: a smiley, a time or a ratio of sides does nothing to a picture that its author did not ask for. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

STEP = 1.1  # what a pair of brackets multiplies or divides by
STRONGEST = 10.0  # as `engine.job.Concept.weight`; a larger number is none that anybody means
OVERFLOWING = 1e100  # of a product of factors: beyond any that still tells weights apart

# `bot.prompt.emphasis` has the same, or its words would not be ours.
NUMBER = r"[+-]?(?:10(?:\.0{0,6})?|[0-9](?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_TOKEN = re.compile(rf"\\[()\[\]\\]|[()\[\]]|:\s*({NUMBER})\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
_WORDLESS = re.compile(r"[\d\s.,:]*")  # "(4:3)" is a ratio of sides, "(12:30)" a time


class Piece(NamedTuple):
    """A part of a text, brackets taken out, and how much its tokens weigh."""

    text: str
    weight: float


@lru_cache(maxsize=512)
def pieces(text: str) -> Sequence[Piece]:
    """The text in order, neighbours of different weights; a single piece of weight 1 where nothing is emphasised.

    Any text can be read. A factor multiplies those around it; every weight stays within ±10.
    """
    reading = _Reading()
    for match in _TOKEN.finditer(text):
        reading.take(match[0], match[1])
    told = ((part, weight) for part, weight in zip(reading.texts, reading.weights(), strict=True) if part)
    found = [Piece("".join(part for part, _ in same), weight) for weight, same in groupby(told, lambda each: each[1])]
    return tuple(found) or (Piece("", 1.0),)


def plain(text: str) -> str:
    """The words alone, for models that weigh none."""
    return "".join(piece.text for piece in pieces(text))


@dataclass
class _Reading:
    """What has been read so far. An open bracket is an entry of its own, which its closing makes empty.

    Each character costs the same however deep it stands: factors are noted by span, and multiplied once at the end.
    """

    texts: list[str] = field(default_factory=list)
    open: dict[str, list[int]] = field(default_factory=lambda: {"(": [], "[": []})  # entries, not closed yet
    spans: dict[int, tuple[int, float]] = field(default_factory=dict)  # from the entry: up to which, and the factor
    word: int = -1  # the last entry with a word in it, or with a bracket that has become a character

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
        """Of each entry. From the outside in: what is around multiplies, and `most` is what it leaves of ±10."""
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
        """`:1.2)`, which is a weight only where a word is before it."""
        at = self._opening("(")
        if at < 0 or max(self.word, self._opening("[")) <= at:
            self._add(mark[:-1])
            self._close(")", STEP)
        else:
            self._close(")", float(number))

    def _close(self, bracket: str, factor: float) -> None:
        """Multiplies what the bracket encloses; brackets within that nobody has closed are characters."""
        at = self._opening("(" if bracket == ")" else "[")
        for same in self.open.values() if at >= 0 else ():
            while same and same[-1] >= at:
                self.word = max(self.word, same.pop())
        if at < 0 or at + 1 == len(self.texts):  # an entry is only ever emptied by what follows it
            self._add(bracket)
        else:
            self.texts[at] = ""
            self.spans[at] = (len(self.texts), factor)

    def _opening(self, kind: str) -> int:
        """The nearest open bracket of this kind; -1 where there is none."""
        return self.open[kind][-1] if self.open[kind] else -1


def _within(factor: float, most: float, end: int, own: float) -> tuple[int, float, float]:
    """Up to `end`: w ↦ ±most of factor·w, after ±10 of own·w, is again ±another of another factor times w."""
    product = max(-OVERFLOWING, min(OVERFLOWING, factor * own))
    return end, product, min(most, abs(factor) * STRONGEST)
