"""A trie of forbidden words, and one pass over a text that finds any of them in any disguise.

A character may have several readings (`1`: an i, an l, a digit or nothing). The pass keeps all partial matches and
drops those that lead nowhere. It takes a few steps per character, whatever the length of the list; a text made to take
more is given up (`bot.rules.effort`). `bot.rules.words` describes the disguises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from bot.rules.effort import Effort
from bot.rules.signs import Sign, openings, sign

OFTEN = frozenset("bdefglmnoprstz")  # letters that English often doubles
GAP = 5  # characters between two letters of a word
SPACED = 3  # letters that a word must have to be found with spaces between them


@dataclass(slots=True, eq=False)
class Node:
    """A node of the trie: `letter` was read, for the `run`th time in a row."""

    letter: str = ""
    run: int = 0
    next: dict[str, Node] = field(default_factory=dict)
    entry: str | None = None  # the listed word that ends here, as it was listed
    prefix: bool = False  # also matches at the beginning of longer words
    lettered: bool = False  # it has a letter, so one must be left in a disguise
    length: int = 0

    def done(self, count: int) -> bool:
        """Return whether its letter, read `count` times in a row, is a way to write it."""
        return count == self.run or count >= 3 or self.run > 1 or self.letter not in OFTEN


class At(NamedTuple):
    """A partial match of a word.

    `times`: its last letter in a row; `gap`: characters since that; `apart`: there was a gap between every two letters;
    `spaced`: with a space among them; `sure`: one true letter was read.
    """

    node: Node
    times: int
    gap: int
    apart: bool
    spaced: bool
    sure: bool


def grown(words: Iterable[tuple[str, str, bool]]) -> Node:
    """Build the trie of (letters, the word as listed, whether it is a prefix)."""
    root = Node()
    for letters, listed, prefix in words:
        node = root
        for letter in letters:
            run = node.run + 1 if letter == node.letter else 1
            node = node.next.setdefault(letter, Node(letter, run))
        node.entry, node.prefix, node.length = node.entry or listed, node.prefix or prefix, len(letters)
        node.lettered = any(sign(letter).sure for letter in letters)
    return root


def first(text: str, root: Node, effort: Effort) -> str | None:
    """Return the listed word that ends first in a normalised text, as it was listed. Raises `Tangled`."""
    signs = [sign(one) for one in text]
    strict, loose = openings(signs)
    ends_strict, ends_loose = (list(reversed(ends)) for ends in openings(signs[::-1]))
    ways: set[At] = set()
    for place, one in enumerate(signs):
        ways = {after for way in ways for after in _after(way, one)}
        ways.update(_begun(root, one, strict[place], loose[place]))
        effort.spend(len(ways))
        for way in ways:
            if _ended(way, one, ends_strict[place], ends_loose[place]):
                return way.node.entry
    return None


def _begun(root: Node, one: Sign, strict: bool, loose: bool) -> Iterator[At]:
    """Yield the matches that begin with this character."""
    free = one.kind in ("unspaced", "sign")
    for letter in one.letters:
        node = root.next.get(letter)
        if node is not None and (strict or (loose and not letter.isdigit()) or (free and letter == one.letters[0])):
            yield At(node, 1, 0, True, False, one.sure)


def _after(way: At, one: Sign) -> Iterator[At]:
    """Yield the continuations of a match with the next character: as a letter, and as a gap."""
    yield from _lettered(way, one)
    if one.kind in ("space", "sign"):
        yield from _gapped(way, one.kind == "space")


def _lettered(way: At, one: Sign) -> Iterator[At]:
    node, apart, sure = way.node, way.apart and way.gap > 0, way.sure or one.sure
    for letter in one.letters:
        same = letter == node.letter
        child = node.next.get(letter)
        if child is not None and (same or node.done(way.times)) and (way.gap or not way.spaced):
            yield At(child, way.times + 1 if same else 1, 0, apart, way.spaced, sure)
        if same:
            yield At(node, min(way.times + 1, max(3, node.run)), 0, way.apart, way.spaced, sure)


def _gapped(way: At, space: bool) -> Iterator[At]:
    node = way.node
    between = node.letter == " "
    if way.gap < GAP and (way.apart or between or not space):
        yield way._replace(gap=way.gap + 1, spaced=way.spaced or (space and not between))
    following = node.next.get(" ")
    if following is not None and node.done(way.times):
        yield At(following, 1, 1, way.apart, way.spaced, way.sure)


def _ended(way: At, one: Sign, strict: bool, loose: bool) -> bool:
    """Return whether a listed word ends with this character."""
    node = way.node
    if node.entry is None or way.gap or not node.done(way.times) or (node.lettered and not way.sure):
        return False
    if way.spaced and node.length < SPACED and one.kind != "unspaced":
        return False
    free = one.kind in ("unspaced", "sign") and node.letter == one.letters[0]
    return node.prefix or free or strict or (loose and not node.letter.isdigit())
