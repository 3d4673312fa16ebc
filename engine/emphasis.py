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
from typing import NamedTuple

STEP = 1.1  # what a pair of brackets multiplies or divides by
STRONGEST = 10.0  # as `engine.job.Concept.weight`; a larger number is none that anybody means

_TOKEN = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
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
    found: list[Piece] = []
    for part, weight in zip(reading.texts, reading.weights, strict=True):
        if part and found and found[-1].weight == weight:
            found[-1] = Piece(found[-1].text + part, weight)
        elif part:
            found.append(Piece(part, weight))
    return tuple(found) or (Piece("", 1.0),)


def plain(text: str) -> str:
    """The words alone, for models that weigh none."""
    return "".join(piece.text for piece in pieces(text))


@dataclass
class _Reading:
    """What has been read so far. An open bracket is an entry of its own, which its closing makes empty."""

    texts: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    open: list[int] = field(default_factory=list)  # entries that are brackets, not closed yet

    def take(self, mark: str, number: str | None) -> None:
        if number is not None:
            self._close_with(mark, number)
        elif mark in ("(", "["):
            self.open.append(len(self.texts))
            self._add(mark)
        elif mark in (")", "]"):
            self._close(mark, STEP if mark == ")" else 1 / STEP)
        else:
            self._add(mark[1:] if mark[0] == "\\" and len(mark) > 1 else mark)

    def _add(self, text: str) -> None:
        self.texts.append(text)
        self.weights.append(1.0)

    def _close_with(self, mark: str, number: str) -> None:
        """`:1.2)`, which is a weight only where a word is before it."""
        said = "".join(self.texts[self._opening(")") + 1 :])
        if self._opening(")") >= 0 and abs(float(number)) <= STRONGEST and not _WORDLESS.fullmatch(said):
            self._close(")", float(number))
        else:
            self._add(mark[:-1])
            self._close(")", STEP)

    def _close(self, bracket: str, factor: float) -> None:
        """Multiplies what the bracket encloses; brackets within that nobody has closed are characters."""
        at = self._opening(bracket)
        if at < 0 or not any(self.texts[at + 1 :]):
            self.open = [each for each in self.open if each != at]
            self._add(bracket)
            return
        self.open = [each for each in self.open if each < at]
        self.texts[at] = ""
        for entry in range(at + 1, len(self.texts)):
            self.weights[entry] = max(-STRONGEST, min(STRONGEST, self.weights[entry] * factor))

    def _opening(self, bracket: str) -> int:
        """The nearest open bracket of this kind; -1 where there is none."""
        kind = "(" if bracket == ")" else "["
        return next((each for each in reversed(self.open) if self.texts[each] == kind), -1)
