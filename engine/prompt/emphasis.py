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

BRACKET_FACTOR = 1.1  # factor of a pair of brackets
MAX_WEIGHT = 10.0  # the bound of `engine.contract.Concept.weight`
MAX_PRODUCT = 1e100  # bound on a product of factors, beyond every useful one

# `bot.prompt.concepts` has the same pattern, so that both parse a prompt alike.
NUMBER = r"[+-]?(?:10(?:\.0{0,6})?|[0-9](?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_TOKEN = re.compile(rf"\\[()\[\]\\]|[()\[\]]|:\s*({NUMBER})\s*\)|[^\\()\[\]:]+|.", re.DOTALL)
_WORDLESS = re.compile(r"[\d\s.,:]*")  # "(4:3)" is a ratio of sides, "(12:30)" a time


class WeightedText(NamedTuple):
    """A part of a text without its brackets, and the weight of its tokens."""

    text: str
    weight: float


@lru_cache(maxsize=512)
def split_by_weight(text: str) -> Sequence[WeightedText]:
    """Return the text in order, split where the weight changes; one piece of weight 1 if nothing is emphasised.

    Every text is valid. Nested factors multiply; every weight stays within ±10.
    """
    parser = _Parser()
    for match in _TOKEN.finditer(text):
        parser.feed(match[0], match[1])
    weighted = ((part, weight) for part, weight in zip(parser.texts, parser.weights(), strict=True) if part)
    pieces = [
        WeightedText("".join(part for part, _ in group), weight)
        for weight, group in groupby(weighted, lambda pair: pair[1])
    ]
    return tuple(pieces) or (WeightedText("", 1.0),)


def strip_emphasis(text: str) -> str:
    """Return the text without emphasis, for models that do not weight tokens."""
    return "".join(part.text for part in split_by_weight(text))


@dataclass
class _Parser:
    """The parser's state. An open bracket is an entry of its own, which closing makes empty.

    A character costs the same at any depth: it notes factors by span and multiplies them once at the end.
    """

    texts: list[str] = field(default_factory=list)
    # entries that are not closed yet
    open_brackets: dict[str, list[int]] = field(default_factory=lambda: {"(": [], "[": []})
    spans: dict[int, tuple[int, float]] = field(default_factory=dict)  # first entry → end entry, factor
    last_word: int = -1  # the last entry with a word or a literal bracket in it

    def feed(self, symbol: str, number: str | None) -> None:
        if number is not None:
            self._close_with_weight(symbol, number)
        elif symbol in self.open_brackets:
            self.open_brackets[symbol].append(len(self.texts))
            self.texts.append(symbol)
        elif symbol in (")", "]"):
            self._close(symbol, BRACKET_FACTOR if symbol == ")" else 1 / BRACKET_FACTOR)
        else:
            self._add_text(symbol[1:] if symbol[0] == "\\" and len(symbol) > 1 else symbol)

    def weights(self) -> list[float]:
        """Return the weight of each entry, from the outside in. The bound is what outer spans leave of ±10."""
        weights: list[float] = []
        enclosing = [(len(self.texts), 1.0, MAX_WEIGHT)]
        for entry in range(len(self.texts)):
            while len(enclosing) > 1 and enclosing[-1][0] <= entry:
                enclosing.pop()
            if entry in self.spans:
                enclosing.append(_nest_span(*enclosing[-1][1:], *self.spans[entry]))
            _, factor, bound = enclosing[-1]
            weights.append(max(-bound, min(bound, factor)))
        return weights

    def _add_text(self, text: str) -> None:
        if not _WORDLESS.fullmatch(text):
            self.last_word = len(self.texts)
        self.texts.append(text)

    def _close_with_weight(self, token: str, number: str) -> None:
        """Handle `:1.2)`, which is a weight only after a word."""
        opening = self._find_opening("(")
        if opening < 0 or max(self.last_word, self._find_opening("[")) <= opening:
            self._add_text(token[:-1])
            self._close(")", BRACKET_FACTOR)
        else:
            self._close(")", float(number))

    def _close(self, bracket: str, factor: float) -> None:
        """Multiply what the bracket encloses; unclosed brackets inside become characters."""
        opening = self._find_opening("(" if bracket == ")" else "[")
        for positions in self.open_brackets.values() if opening >= 0 else ():
            while positions and positions[-1] >= opening:
                self.last_word = max(self.last_word, positions.pop())
        if opening < 0 or opening + 1 == len(self.texts):  # nothing inside: only later marks empty an entry
            self._add_text(bracket)
        else:
            self.texts[opening] = ""
            self.spans[opening] = (len(self.texts), factor)

    def _find_opening(self, kind: str) -> int:
        return self.open_brackets[kind][-1] if self.open_brackets[kind] else -1


def _nest_span(factor: float, bound: float, span_end: int, span_factor: float) -> tuple[int, float, float]:
    """Return the end, factor and bound inside a span that ends at `span_end`.

    Clamping own·w to ±10, multiplying by `factor` and clamping to ±`bound` equals one factor and one bound.
    """
    product = max(-MAX_PRODUCT, min(MAX_PRODUCT, factor * span_factor))
    return span_end, product, min(bound, abs(factor) * MAX_WEIGHT)
