"""Finds forbidden words and patterns in a text, disguised or not. Pure.

A word matches between word boundaries, as readers see it (`bot.policy.rules.lookalikes`), and through these disguises:
- digits and signs for letters, as in `b4d`, `b@d`, `b*d`, if one true letter, @ or $ is left;
- dots, dashes and the like inside it, as in `b.a.d`; spaces, commas and brackets only between all of its letters
  (`b a d`), or "pen is" would be read as one word;
- emphasis inside it, as in `(ba:1.3)d`, since the model reads that as one word (`bot.prompt.concepts`);
- letters written three times or more; also twice if English hardly ever doubles them, so that "good" is no "god".
`*` at a word's end matches all words that begin with it. Scripts without spaces between words (Han, kana, Thai, Lao,
Khmer, Burmese) have no boundaries: there a word matches anywhere. Where endings or particles join words (Russian,
Korean, Arabic), `*` matches them too. An emoji matches anywhere.

Not found: words backwards, words cut in two by one space, one Han form for another. A word that consists of another
script's look-alikes is taken for what it looks like, since no reader can tell.

Patterns (RE2, whose time is linear in the text: https://github.com/google/re2/wiki/Syntax) ignore case. They see the
text as typed, as readers see it, and that without signs for letters; with emphasis, also these three without it.

Words are in a trie, and one pass finds any of them: a character may have several readings (`1`: an i, an l, a digit or
nothing), and the pass keeps all partial matches. All texts of a request share one limit of steps, so that ten prompts
cost no more than one; the same texts and lists always give the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import re2

from bot.domain.errors import UserError
from bot.domain.texts import clean_text, shorten
from bot.policy.rules.lookalikes import (
    CharacterReadings,
    normalise_text,
    read_character,
    replace_substitutes,
    word_starts,
)
from bot.prompt.concepts import remove_emphasis

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
    pattern = find_first_match((text, normalised_text, replace_substitutes(normalised_text)), patterns, budget)
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


MAX_MATCH_STEPS = 60_000  # steps; an ordinary prompt takes one or two per character, and a step some microseconds


class BudgetExceeded(Exception):
    """These texts cannot be matched within the limit."""


@dataclass
class MatchBudget:
    """The steps that are left."""

    steps_left: int = MAX_MATCH_STEPS

    def spend(self, steps: int) -> None:
        """Spend `steps`. Raises `BudgetExceeded` if fewer are left."""
        self.steps_left -= steps
        if self.steps_left < 0:
            raise BudgetExceeded


_re2: Any = re2  # it has no type hints
MAX_LENGTH = 200  # characters
MAX_INSTRUCTIONS = 2000
MAX_MEMORY = 1 << 18  # bytes
WORK_PER_STEP = (
    10_000  # instructions × bytes that take as long as a step, in RE2's worst case: a pattern outgrows its memory
)


def parse_pattern(text: str) -> str:
    """Return a pattern, checked. Raises `UserError` (422) with RE2's reason."""
    pattern = clean_text(text)
    if not pattern or len(pattern) > MAX_LENGTH:
        raise UserError(f"A pattern has 1 to {MAX_LENGTH} characters; this one has {len(pattern)}.")
    excerpt = shorten(pattern, 60)
    try:
        expression = _compile(pattern)
    except _re2.error as error:
        raise UserError(f"“{excerpt}” is no pattern of RE2: {shorten(_error_reason(error), 120)}.") from error
    if expression.programsize > MAX_INSTRUCTIONS:
        raise UserError(
            f"“{excerpt}” is too large a pattern: it makes {expression.programsize} of {MAX_INSTRUCTIONS} instructions."
        )
    if expression.search(b"") or expression.search(b"~"):
        raise UserError(f"“{excerpt}” matches nearly everything: no prompt could be made.")
    return pattern


def find_first_match(readings: Sequence[str], patterns: Sequence[str], budget: MatchBudget) -> str | None:
    """Return the first pattern that matches a reading of a text; patterns that RE2 rejects are skipped.

    Raises `BudgetExceeded` if that takes more than is left of the `budget`.
    """
    texts = [text.encode("utf-8", "replace") for text in dict.fromkeys(readings)]
    for pattern in patterns:
        if not pattern:
            continue
        try:
            expression = _compile(pattern)
        except _re2.error:
            continue
        budget.spend(expression.programsize * sum(map(len, texts)) // WORK_PER_STEP)
        if any(expression.search(text) for text in texts):
            return pattern
    return None


def _compile(pattern: str) -> Any:  # re2 has no public name for it
    options = _re2.Options()
    options.max_mem = MAX_MEMORY
    options.log_errors = False
    options.case_sensitive = False
    options.never_capture = True
    return _re2.compile(pattern.encode(), options)


def _error_reason(error: Exception) -> str:
    """Return RE2's message, which is bytes and names the faulty part."""
    message = error.args[0] if error.args else "it cannot be read"
    return message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)


OFTEN_DOUBLED = frozenset("bdefglmnoprstz")  # letters that English often doubles
MAX_GAP = 5  # characters between two letters of a word
MIN_SPACED_LETTERS = 3  # letters that a word must have to be found with spaces between them


@dataclass(slots=True, eq=False)
class TrieNode:
    """A node of the trie: `letter` was read, for the `run`th time in a row."""

    letter: str = ""
    run: int = 0
    children: dict[str, TrieNode] = field(default_factory=dict)
    entry: str | None = None  # the listed word that ends here, as it was listed
    prefix: bool = False  # also matches at the beginning of longer words
    has_letter: bool = False  # it has a letter, so one must be left in a disguise
    length: int = 0

    def is_complete(self, count: int) -> bool:
        """Return whether its letter, read `count` times in a row, is a way to write it."""
        return count == self.run or count >= 3 or self.run > 1 or self.letter not in OFTEN_DOUBLED


class PartialMatch(NamedTuple):
    """A partial match of a word.

    `repeats`: its last letter in a row; `gap`: characters since that; `all_apart`: there was a gap between every two
    letters; `has_space`: one of the gaps has a space; `is_certain`: one true letter was read.
    """

    node: TrieNode
    repeats: int
    gap: int
    all_apart: bool
    has_space: bool
    is_certain: bool


def build_trie(words: Iterable[tuple[str, str, bool]]) -> TrieNode:
    """Build the trie of (letters, the word as listed, whether it is a prefix)."""
    root = TrieNode()
    for letters, listed_word, prefix in words:
        node = root
        for letter in letters:
            run = node.run + 1 if letter == node.letter else 1
            node = node.children.setdefault(letter, TrieNode(letter, run))
        node.entry, node.prefix, node.length = node.entry or listed_word, node.prefix or prefix, len(letters)
        node.has_letter = any(read_character(letter).is_certain for letter in letters)
    return root


def find_first(text: str, root: TrieNode, budget: MatchBudget) -> str | None:
    """Return the listed word that ends first in a normalised text, as it was listed. Raises `BudgetExceeded`."""
    characters = [read_character(character) for character in text]
    strict_starts, loose_starts = word_starts(characters)
    ends_strict, ends_loose = (list(reversed(boundaries)) for boundaries in word_starts(characters[::-1]))
    matches: set[PartialMatch] = set()
    for index, character in enumerate(characters):
        matches = {continuation for match in matches for continuation in _continue_match(match, character)}
        matches.update(_start_matches(root, character, strict_starts[index], loose_starts[index]))
        budget.spend(len(matches))
        for match in matches:
            if _is_word_end(match, character, ends_strict[index], ends_loose[index]):
                return match.node.entry
    return None


def _start_matches(
    root: TrieNode, character: CharacterReadings, at_strict_boundary: bool, at_loose_boundary: bool
) -> Iterator[PartialMatch]:
    is_unbounded = character.kind in ("unspaced", "sign")
    for letter in character.letters:
        node = root.children.get(letter)
        if node is not None and (
            at_strict_boundary
            or (at_loose_boundary and not letter.isdigit())
            or (is_unbounded and letter == character.letters[0])
        ):
            yield PartialMatch(node, 1, 0, True, False, character.is_certain)


def _continue_match(match: PartialMatch, character: CharacterReadings) -> Iterator[PartialMatch]:
    """Yield the continuations of a match with the next character: as a letter, and as a gap."""
    yield from _continue_with_letter(match, character)
    if character.kind in ("space", "sign"):
        yield from _continue_with_gap(match, character.kind == "space")


def _continue_with_letter(match: PartialMatch, character: CharacterReadings) -> Iterator[PartialMatch]:
    node = match.node
    all_apart = match.all_apart and match.gap > 0
    is_certain = match.is_certain or character.is_certain
    for letter in character.letters:
        is_same_letter = letter == node.letter
        child = node.children.get(letter)
        if (
            child is not None
            and (is_same_letter or node.is_complete(match.repeats))
            and (match.gap or not match.has_space)
        ):
            yield PartialMatch(
                child, match.repeats + 1 if is_same_letter else 1, 0, all_apart, match.has_space, is_certain
            )
        if is_same_letter:
            yield PartialMatch(
                node, min(match.repeats + 1, max(3, node.run)), 0, match.all_apart, match.has_space, is_certain
            )


def _continue_with_gap(match: PartialMatch, is_space: bool) -> Iterator[PartialMatch]:
    node = match.node
    at_word_gap = node.letter == " "
    if match.gap < MAX_GAP and (match.all_apart or at_word_gap or not is_space):
        yield match._replace(gap=match.gap + 1, has_space=match.has_space or (is_space and not at_word_gap))
    next_node = node.children.get(" ")
    if next_node is not None and node.is_complete(match.repeats):
        yield PartialMatch(next_node, 1, 1, match.all_apart, match.has_space, match.is_certain)


def _is_word_end(
    match: PartialMatch, character: CharacterReadings, at_strict_boundary: bool, at_loose_boundary: bool
) -> bool:
    node = match.node
    if (
        node.entry is None
        or match.gap
        or not node.is_complete(match.repeats)
        or (node.has_letter and not match.is_certain)
    ):
        return False
    if match.has_space and node.length < MIN_SPACED_LETTERS and character.kind != "unspaced":
        return False
    is_unbounded = character.kind in ("unspaced", "sign") and node.letter == character.letters[0]
    return node.prefix or is_unbounded or at_strict_boundary or (at_loose_boundary and not node.letter.isdigit())
