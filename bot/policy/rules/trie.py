"""A trie of forbidden words, and one pass over a text that finds any of them in any disguise.

A character may have several readings (`1`: an i, an l, a digit or nothing). The pass keeps all partial matches and
drops dead ends. It takes a few steps per character, whatever the length of the list; it gives up on a text that takes
more (`bot.policy.rules.match_budget`). `bot.policy.rules.word_filter` describes the disguises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from bot.policy.rules.leetspeak import CharacterReadings, read_character, word_starts
from bot.policy.rules.match_budget import MatchBudget

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
    """Yield the matches that begin with this character."""
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
    """Return whether a listed word ends with this character."""
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
