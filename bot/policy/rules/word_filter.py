"""Finds forbidden words and patterns in a text, disguised or not. Pure.

A word matches between word boundaries, as readers see it (`bot.policy.rules.confusables`), and through these disguises:
- digits and signs for letters, as in `b4d`, `b@d`, `b*d` (`bot.policy.rules.leetspeak`), if one true letter, @ or $ is
  left;
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

Patterns (`bot.policy.rules.patterns`) see three readings: as typed, as readers see it, and that without signs for
letters; with emphasis, also these three without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from bot.domain.errors import UserError
from bot.domain.texts import clean_text, shorten
from bot.policy.rules import patterns as expressions
from bot.policy.rules.confusables import normalise_text
from bot.policy.rules.leetspeak import read_character, replace_substitutes
from bot.policy.rules.match_budget import BudgetExceeded, MatchBudget
from bot.policy.rules.patterns import parse_pattern
from bot.policy.rules.trie import TrieNode, build_trie, find_first
from bot.prompt.emphasis import remove_emphasis

__all__ = ["Match", "find_match", "normalise_text", "parse_pattern", "parse_word"]

# characters of a word, words of a list
MAX_WORD_LENGTH = 100
MAX_WORDS = 500


class Match(NamedTuple):
    """A match: a `word` or a `pattern` of the list; "tangled": the text exceeds the limit on work."""

    kind: Literal["word", "pattern", "tangled"]
    entry: str


def find_match(
    text: str, words: Sequence[str], patterns: Sequence[str] = (), budget: MatchBudget | None = None
) -> Match | None:
    """Return a forbidden word that `text` has, else a pattern, as they were listed; None if it has none.

    `budget`: the work that is left; None for the budget of a whole request.
    """
    if not words and not patterns:
        return None
    budget = budget or MatchBudget()
    try:
        readings = dict.fromkeys((text, remove_emphasis(text)))
        return next(
            (match for reading in readings if (match := _match_reading(reading, words, patterns, budget))), None
        )
    except BudgetExceeded:
        return Match("tangled", "")


def _match_reading(text: str, words: Sequence[str], patterns: Sequence[str], budget: MatchBudget) -> Match | None:
    """Match one reading. Raises `BudgetExceeded`."""
    normalised_text = normalise_text(text)
    word = find_first(normalised_text, _build_tree(tuple(words)), budget)
    if word is not None:
        return Match("word", word)
    pattern = expressions.find_first_match(
        (text, normalised_text, replace_substitutes(normalised_text)), patterns, budget
    )
    return None if pattern is None else Match("pattern", pattern)


def parse_word(text: str) -> str:
    """Return an entry of a word list, checked, on one line. Raises `UserError` (422)."""
    word = clean_text(text)
    if not word or len(word) > MAX_WORD_LENGTH:
        raise UserError(f"A forbidden word has 1 to {MAX_WORD_LENGTH} characters; this one has {len(word)}.")
    letters, _ = _word_letters(word)
    excerpt = shorten(word, 40)
    if not letters or (letters.isascii() and not any(map(str.isalnum, letters))):
        raise UserError(f"“{excerpt}” has no letter in it: punctuation cannot be forbidden.")
    if len(letters) == 1 and read_character(letters).kind in ("letter", "digit"):
        raise UserError(f"“{excerpt}” is a single letter or digit: a forbidden word has at least two.")
    return word


@lru_cache(maxsize=32)
def _build_tree(words: tuple[str, ...]) -> TrieNode:
    return build_trie(_entries(words[:MAX_WORDS]))


def _entries(words: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    for word in words:
        letters, prefix = _word_letters(word[:MAX_WORD_LENGTH])
        if letters:
            yield letters, word, prefix


def _word_letters(word: str) -> tuple[str, bool]:
    """Return a listed word's letters, or the sign that it consists of, and whether it is a prefix."""
    normalised_word = " ".join(normalise_text(word).split())
    stem = normalised_word.rstrip("*")
    letters = "".join(
        character
        for character in stem
        if character == " " or read_character(character).kind in ("letter", "unspaced", "digit")
    )
    return " ".join(letters.split()) or stem.replace(" ", ""), stem != normalised_word
