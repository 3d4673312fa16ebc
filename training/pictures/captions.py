"""Generates captions of a drawing, many for each, so that the network learns words and not only labels.

It is independent of pixels. A model that only saw labels cannot follow "a cute dog, white background". So tags, word
order, articles and filler words vary, and the caption names every change of a picture (hue, size, background). Some
words never occur: the evaluation tests them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

HELD_OUT_WORDS = frozenset({"puppy", "kitten", "hound", "canine", "feline", "automobile", "vessel"})
HELD_OUT_INFLECTIONS = frozenset({"puppies", *(f"{word}s" for word in HELD_OUT_WORDS)})
HELD_OUT_PAIRS = frozenset(
    {("blue", "apple"), ("purple", "octopus"), ("green", "cat"), ("red", "frog"), ("pink", "car"), ("blue", "banana")}
)
REPLACEMENT_WORDS = {"automobile": "car"}  # a label needs a name even if its word is held out
FILLER_TEXT = (
    "emoji, icon, sticker, clip art, simple, cartoon, high quality, detailed, picture, drawing, illustration, "
    "digital art, portrait, beautiful, looking up"
)
FILLER_WORDS = tuple(FILLER_TEXT.split(", "))
# Captions without a style mean the rounded one: a prompt without a style is one clear picture (decision 75).
STYLE_MENTION_SHARE = {"3d render": 0.6, "soft shading": 0.95, "flat design": 0.95}
RELATED_WORD_SHARE = 0.4  # of the captions of a drawing that has such words
FACES_AND_ANIMALS = frozenset({0, 3})
COLOURS = frozenset(
    ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "cyan", "teal"]
)


@dataclass(frozen=True)
class Description:
    """The label of a drawing, its tags, and words for which it is the nearest drawing; without held-out words."""

    label: str
    tags: tuple[str, ...]
    related_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Appearance:
    """The changes of a drawing; an empty string is not worth a word (a usual size)."""

    hue: str
    style: str
    size: str
    background: str


def list_usual_words() -> tuple[str, ...]:
    """Return the words that captions have beside the names of things."""
    return (*FILLER_WORDS, *STYLE_MENTION_SHARE, *COLOURS, "background", "cute", "small", "close-up")


def has_held_out_word(text: str) -> bool:
    """Tell whether the text contains a held-out word, in any inflection."""
    return not (HELD_OUT_WORDS | HELD_OUT_INFLECTIONS).isdisjoint(re.findall(r"[a-z]+", text.lower()))


def clean_description(label: str, tags: Iterable[str]) -> Description:
    """Clean a label and its tags: unify the spelling, rename or drop held-out words."""
    clean_label = _normalise(label)
    for word, replacement in REPLACEMENT_WORDS.items():
        clean_label = re.sub(rf"\b{word}\b", replacement, clean_label)
    if has_held_out_word(clean_label):
        raise ValueError(f"the label {label!r} has a held-out word and no other name")
    clean_tags = [_normalise(tag) for tag in tags]
    usable = [tag for tag in clean_tags if re.search(r"[a-z]{2}", tag) and not has_held_out_word(tag)]
    return Description(clean_label, tuple(tag for tag in usable if tag != clean_label))


def is_held_out_pair(hue: str, description: Description) -> bool:
    """Tell whether this hue on this thing is held out, under any of its names: label or tags."""
    names = (description.label, *description.tags, *description.related_words)
    things = [thing for colour, thing in HELD_OUT_PAIRS if colour == hue]
    return any(re.search(rf"\b{thing}s?\b", name) for thing in things for name in names)


def make_caption(description: Description, group: int, appearance: Appearance, rng: np.random.Generator) -> str:
    """Generate one caption.

    A caption without a background means white: it always names other colours, and white half of the time.
    """
    parts = [_name_subject(description, group, appearance.hue, rng)]
    if description.tags and rng.random() < 0.4:
        parts.append(str(rng.choice(description.tags)))
    if group in FACES_AND_ANIMALS and rng.random() < 0.15:
        parts.append("cute")
    if rng.random() < 0.15:
        parts.append(str(rng.choice(FILLER_WORDS)))
    if rng.random() < STYLE_MENTION_SHARE.get(appearance.style, 0.5):
        parts.append(appearance.style)
    if appearance.size:
        parts.append(appearance.size)
    if appearance.background != "white" or rng.random() < 0.5:
        parts.append(f"{appearance.background} background")
    if rng.random() < 0.4:
        rng.shuffle(parts)
    return (", " if rng.random() < 0.85 else " ").join(parts)


def _name_subject(description: Description, group: int, hue: str, rng: np.random.Generator) -> str:
    name = description.label
    if description.related_words and rng.random() < RELATED_WORD_SHARE:
        name = description.related_words[int(len(description.related_words) * rng.random() ** 2)]  # the nearest most
    elif len(description.tags) >= 2 and rng.random() < 0.15:
        name = " ".join(map(str, rng.choice(description.tags, 2, replace=False)))
    elif group == 3 and name.endswith(" face") and rng.random() < 0.6:
        name = name.removesuffix(" face")
    if hue:
        name = f"{hue} {name}"
    if rng.random() < 0.12:
        name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return name


def _normalise(text: str) -> str:
    text = re.sub(r"[“”\"()!?*]", "", text.lower().replace("’", "'"))
    return re.sub(r"\s+", " ", text.replace(": ", " with " if "hair" in text or "beard" in text else " ")).strip()
