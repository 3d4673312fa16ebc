"""Finds the words for which a drawing is the nearest picture that there is: *spaniel* and *puppy* for the dog.

A word that names a drawing (its label, its last word, a tag) means this drawing. Any other noun means the drawing that
is nearest in WordNet: narrower meanings are near, wider ones and their other kinds are farther. Pure.
"""

from __future__ import annotations

import heapq
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from training.pictures.captions import Description
from training.pictures.wordnet import WordNet

HELD_OUT_ONE_IN = 5  # meanings
MAX_DISTANCE = 3.2
# distances of a step; aside: after a step to a wider meaning
NARROWER = 0.35
NARROWER_ASIDE = 0.9
WIDER = 1.1
MAX_WIDER_STEPS = 2
MIN_DEPTH = 6  # wider meanings are too wide: almost everything is an artifact
SECOND_SENSE = 0.6  # distance of a word's second meaning from its first
# how much nearer common words, and words without a space, count in captions
COMMON_WORD = 1.0
SINGLE_WORD = 0.5
# distances of names; steps: of each more
HEAD_WORD = 0.3
MODIFIER = 0.55
TAG = 0.8
TAG_STEP = 0.02
LABEL_WORD = 0.05
PEOPLE = 1  # a group of emojibase
# The topics of a label's meaning, by group of emojibase: a bat among animals is no club.
TOPICS_BY_GROUP = {
    0: {"feeling", "artifact", "animal"},
    PEOPLE: {"person", "body"},
    3: {"animal", "plant", "object", "phenomenon", "body", "artifact"},
    4: {"food", "plant", "artifact"},
    5: {"artifact", "object", "phenomenon", "time", "location"},
    6: {"artifact", "act", "event", "communication", "food"},
    7: {"artifact", "communication", "substance", "possession", "body", "object", "food", "time"},
}
VAGUE_TEXT = (
    "animal body button eyes face fast food hand heart man open people person sign smile symbol woman "
    "black blue brown green orange purple red white yellow"
)
VAGUE_WORDS = frozenset(VAGUE_TEXT.split())
# Labels whose word means another thing in WordNet: "construction" is any building there, "hundred points" sharp ends.
MISLEADING_TEXT = (
    "black nib; broken heart; building construction; carousel horse; construction; cricket game; curling stone; "
    "dotted line face; e-mail; flower playing cards; heart decoration; high voltage; horizontal traffic light; "
    "hot springs; hundred points; joystick; pine decoration; potted plant; poultry leg; purple heart; puzzle piece; "
    "rice ball; seal; speaker high volume; speaker low volume; speaker medium volume; spiral shell; "
    "vertical traffic light; watch; wind face; wood; yarn"
)
MISLEADING_LABELS = frozenset(MISLEADING_TEXT.split("; "))
_PREPOSITION = re.compile(r" (?:at|from|in|on|over|with|without) .*")  # "umbrella on ground" is an umbrella
WORD = re.compile(r"[a-z]{2,}( [a-z]{2,}){0,2}")


@dataclass(frozen=True, order=True)
class Name:
    """A drawing that a word means, by place in the list and label. Of two names the nearer holds, then the first."""

    distance: float
    place: int
    label: str

    def move(self, distance: float) -> Name:
        """Return the same drawing at a larger distance."""
        return Name(self.distance + distance, self.place, self.label)


def find_related_words(drawings: Iterable[tuple[Description, int]], wordnet: WordNet) -> dict[str, Name]:
    """Map each noun of WordNet to the drawing that it means best; `drawings` have their group. Far words are absent."""
    described = [(description, group) for description, group in drawings if group in TOPICS_BY_GROUP]
    names = _collect_names(described)
    nearest = _spread(_choose_nearest(_list_label_synsets(described, wordnet)), wordnet)
    words = (word for word in wordnet.senses if WORD.fullmatch(word))
    related = ((word, names.get(word) or _find_nearest(word, nearest, wordnet)) for word in words)
    return {word: name for word, name in related if name is not None}


def group_by_label(
    related_words: Mapping[str, Name], common_words: Collection[str] = frozenset()
) -> dict[str, tuple[str, ...]]:
    """Return the words of each label without the label itself, those first that people write and that are near."""

    def rank(word: str) -> tuple[float, str]:
        advantage = COMMON_WORD * (word in common_words) + SINGLE_WORD * (" " not in word)
        return related_words[word].distance - advantage, word

    words_by_label: defaultdict[str, list[str]] = defaultdict(list)
    for word in sorted(related_words, key=rank):
        if word != (name := related_words[word]).label:
            words_by_label[name.label].append(word)
    return {label: tuple(words) for label, words in words_by_label.items()}


def find_meant_labels(drawings: Iterable[tuple[Description, int]], wordnet: WordNet) -> dict[str, frozenset[str]]:
    """Map each noun whose first meaning is held out to the labels that this meaning belongs to.

    These are the labels of the nearest drawings, all of one meaning, and the labels of its kinds: *lion* and *tiger*
    for *big cat*. Words that mean a drawing by a second meaning only are absent.
    """
    label_synsets = list(_list_label_synsets([pair for pair in drawings if pair[1] in TOPICS_BY_GROUP], wordnet))
    synset_by_place = {name.place: synset for synset, name in label_synsets}
    labels_by_synset = defaultdict[str, set[str]](set)
    kinds = defaultdict[str, set[str]](set)
    for synset, name in label_synsets:
        labels_by_synset[synset].add(name.label)
        for wider in _collect_wider(synset, wordnet):
            kinds[wider].add(name.label)
    nearest = _spread(_choose_nearest(label_synsets), wordnet)
    meant_labels: dict[str, frozenset[str]] = {}
    for word, (synset, *_) in wordnet.senses.items():
        is_name = word in wordnet.synsets[synset].proper_names
        if synset in nearest and WORD.fullmatch(word) and is_held_out(word, wordnet) and not is_name:
            own_synset = synset_by_place[nearest[synset].place]
            meant_labels[word] = frozenset(labels_by_synset[own_synset] | kinds[synset])
    return meant_labels


def is_held_out(word: str, wordnet: WordNet) -> bool:
    """Tell whether the word's first meaning is one of the fifth that no caption names; its synonyms are, too."""
    senses = wordnet.senses.get(word)
    return senses is not None and zlib.crc32(senses[0].encode()) % HELD_OUT_ONE_IN == 0


def _collect_names(described: Iterable[tuple[Description, int]]) -> dict[str, Name]:
    names: dict[str, Name] = {}
    for place, (description, group) in enumerate(described):
        for word, distance in _list_names(description, group):
            name = Name(distance, place, description.label)
            names[word] = min(names.get(word, name), name)
    return names


def _list_names(description: Description, group: int) -> Iterator[tuple[str, float]]:
    """Yield the words that name a drawing, each with its distance."""
    yield description.label, 0.0
    *modifiers, head = _PREPOSITION.split(description.label.removesuffix(" face"))[0].split() or [description.label]
    if group != PEOPLE:
        yield " ".join((*modifiers, head)), LABEL_WORD
        if modifiers and head not in VAGUE_WORDS:
            yield head, HEAD_WORD + LABEL_WORD * len(modifiers)
        for modifier in modifiers:
            if modifier not in VAGUE_WORDS:
                yield modifier, MODIFIER + LABEL_WORD * len(modifiers)
    for number, tag in enumerate(description.tags):
        if tag not in VAGUE_WORDS:
            yield tag, TAG + TAG_STEP * number + LABEL_WORD * len(modifiers)


def _list_label_synsets(described: Iterable[tuple[Description, int]], wordnet: WordNet) -> Iterator[tuple[str, Name]]:
    """Yield the id of each label's meaning, with the drawing; labels without a meaning are left out."""
    for place, (description, group) in enumerate(described):
        if description.label in MISLEADING_LABELS:
            continue
        clues = {word for tag in (description.label, *description.tags) for word in tag.split()}
        for word, distance in _list_names(description, group):
            if distance >= MODIFIER:
                break
            if word not in VAGUE_WORDS and (synset := _choose_sense(word, group, clues - {word}, wordnet)):
                yield synset, Name(distance, place, description.label)
                break


def _choose_nearest(label_synsets: Iterable[tuple[str, Name]]) -> dict[str, Name]:
    """Return the nearest drawing of each meaning of a label."""
    anchors: dict[str, Name] = {}
    for synset, name in label_synsets:
        anchors[synset] = min(anchors.get(synset, name), name)
    return anchors


def _collect_wider(synset: str, wordnet: WordNet) -> set[str]:
    """Return the meaning and all that are wider."""
    found = {synset}
    queue = [synset]
    while queue:
        wider = set(wordnet.synsets[queue.pop()].hypernyms) - found
        found |= wider
        queue += wider
    return found


def _choose_sense(word: str, group: int, clues: set[str], wordnet: WordNet) -> str | None:
    """Return the meaning that shares the most words with the drawing's tags; frequent meanings are preferred."""
    senses = wordnet.senses.get(word) or wordnet.senses.get(word.removesuffix("s"), ())
    scores: list[tuple[float, str]] = []
    for rank, name in enumerate(senses):
        synset = wordnet.synsets[name]
        if synset.topic in TOPICS_BY_GROUP[group]:
            wider = (other for hypernym in synset.hypernyms for other in wordnet.synsets[hypernym].words)
            context = {*re.findall("[a-z]+", synset.gloss), *synset.words, *wider}
            scores.append((2 * len(context & clues) - 0.7 * rank, name))
    return max(scores)[1] if scores else None


def _spread(anchors: Mapping[str, Name], wordnet: WordNet) -> dict[str, Name]:
    """Return the nearest label of each meaning within `MAX_DISTANCE`: Dijkstra's algorithm, from all labels."""
    nearest: dict[str, Name] = {}
    queue = [(name, 0, synset) for synset, name in anchors.items()]
    heapq.heapify(queue)
    while queue:
        name, wider_steps, synset = heapq.heappop(queue)
        if synset in nearest:
            continue
        nearest[synset] = name
        for neighbour, step, steps in _list_neighbours(synset, wider_steps, wordnet):
            if neighbour not in nearest and name.distance + step <= MAX_DISTANCE:
                heapq.heappush(queue, (name.move(step), steps, neighbour))
    return nearest


def _list_neighbours(synset: str, wider_steps: int, wordnet: WordNet) -> Iterator[tuple[str, float, int]]:
    """Yield the neighbours of a meaning: id, distance, and steps to wider meanings so far."""
    for narrower in wordnet.synsets[synset].hyponyms:
        yield narrower, NARROWER_ASIDE if wider_steps else NARROWER, wider_steps
    if wider_steps < MAX_WIDER_STEPS:
        for wider in wordnet.synsets[synset].hypernyms:
            if wordnet.depths[wider] >= MIN_DEPTH:
                yield wider, WIDER, wider_steps + 1


def _find_nearest(word: str, nearest: Mapping[str, Name], wordnet: WordNet) -> Name | None:
    """Return the drawing of the word's first meaning that has one, of its two most frequent."""
    for rank, synset in enumerate(wordnet.senses[word][:2]):
        if word in wordnet.synsets[synset].proper_names:
            continue
        if (name := nearest.get(synset)) and name.distance + SECOND_SENSE * rank <= MAX_DISTANCE:
            return name.move(SECOND_SENSE * rank)
    return None


def list_phrases(name: str) -> list[str]:
    """Return every run of words of a name, without the plural's s; the whole name comes last."""
    words = [word.removesuffix("s") for word in re.findall("[a-z]+", name)]
    return [
        " ".join(words[start : start + length])
        for length in range(1, len(words) + 1)
        for start in range(len(words) - length + 1)
    ]
