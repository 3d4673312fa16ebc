"""Forbidden words and patterns: whether a text has one of them, disguised or not. Pure.

A word matches between word boundaries, as readers see it (`bot.rules.lookalikes`), and through these disguises:
- digits and signs for letters, as in `b4d`, `b@d`, `b*d` (`bot.rules.signs`), if one true letter, @ or $ is left;
- dots, dashes and the like inside it, as in `b.a.d`; spaces, commas and brackets only between all of its letters
  (`b a d`), or "pen is" would be read as one word;
- emphasis inside it, as in `(ba:1.3)d`, since the model reads that as one word (`bot.prompt.emphasis`);
- letters written three times or more; also twice if English hardly ever doubles them, so that "good" is not a longer
  "god".
`*` at a word's end matches all words that begin with it. Scripts without spaces between words (Han, kana, Thai, Lao,
Khmer, Burmese) have no boundaries: there a word matches anywhere. In all other scripts boundaries apply; where endings
or particles join words (Russian, Korean, Arabic), `*` matches them too. An emoji matches anywhere.

Not found: words backwards, words cut in two by one space, one Han form for another. A word that consists of another
script's look-alikes is taken for what it looks like, since no reader can tell.

Patterns (`bot.rules.patterns`) see three readings: as typed, as readers see it, and that without signs for letters;
with emphasis, also these three without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from bot.prompt.emphasis import bare
from bot.refused import Refused
from bot.rules import patterns as expressions
from bot.rules.effort import Effort, Tangled
from bot.rules.lookalikes import normalised
from bot.rules.patterns import read_pattern
from bot.rules.signs import sign, unsigned
from bot.rules.wordtree import Node, first, grown
from bot.sentences import plain, shortened

__all__ = ["Match", "found", "normalised", "read_pattern", "read_word"]

LONGEST, LISTED = 100, 500  # characters of a word, words of a list


class Match(NamedTuple):
    """A match: a `word` or a `pattern` of the list; "tangled": the text exceeds the limit on work."""

    kind: Literal["word", "pattern", "tangled"]
    entry: str


def found(text: str, words: Sequence[str], patterns: Sequence[str] = (), effort: Effort | None = None) -> Match | None:
    """Return a forbidden word that `text` has, else a pattern, as they were listed; None if it has none.

    `effort`: the work that is left; None for that of a whole request.
    """
    if not words and not patterns:
        return None
    effort = effort or Effort()
    try:
        readings = dict.fromkeys((text, bare(text)))
        return next((match for one in readings if (match := _found(one, words, patterns, effort))), None)
    except Tangled:
        return Match("tangled", "")


def _found(text: str, words: Sequence[str], patterns: Sequence[str], effort: Effort) -> Match | None:
    """Match one reading. Raises `Tangled`."""
    seen = normalised(text)
    word = first(seen, _tree(tuple(words)), effort)
    if word is not None:
        return Match("word", word)
    pattern = expressions.first((text, seen, unsigned(seen)), patterns, effort)
    return None if pattern is None else Match("pattern", pattern)


def read_word(text: str) -> str:
    """Return an entry of a word list, checked, on one line. Raises `Refused` (422)."""
    word = plain(text)
    if not word or len(word) > LONGEST:
        raise Refused(f"A forbidden word has 1 to {LONGEST} characters; this one has {len(word)}.")
    letters, _ = _letters(word)
    shown = shortened(word, 40)
    if not letters or (letters.isascii() and not any(map(str.isalnum, letters))):
        raise Refused(f"“{shown}” has no letter in it: punctuation cannot be forbidden.")
    if len(letters) == 1 and sign(letters).kind in ("letter", "digit"):
        raise Refused(f"“{shown}” is a single letter or digit: a forbidden word has at least two.")
    return word


@lru_cache(maxsize=32)
def _tree(words: tuple[str, ...]) -> Node:
    return grown(_entries(words[:LISTED]))


def _entries(words: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    for word in words:
        letters, prefix = _letters(word[:LONGEST])
        if letters:
            yield letters, word, prefix


def _letters(word: str) -> tuple[str, bool]:
    """Return a listed word's letters, or the sign that it consists of, and whether it is a prefix."""
    seen = " ".join(normalised(word).split())
    stem = seen.rstrip("*")
    kept = "".join(one for one in stem if one == " " or sign(one).kind in ("letter", "unspaced", "digit"))
    return " ".join(kept.split()) or stem.replace(" ", ""), stem != seen
