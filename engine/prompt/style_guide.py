"""Says which styles the pictures of a prompt take in turn: those in which the model draws its subject well. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engine.prompt.substitutes import replace_nouns

# What people write for a style, whatever the model. Words that are as often a thing ("flat", "soft") are no part of it.
_STYLE_WORDS = re.compile(
    r"\b(?:style|styled|2d|3d|render|rendering|flat design|soft shading|photo|photograph|photorealistic|realistic|"
    r"painting|painted|oil|watercolou?r|gouache|pastel|pencil|charcoal|ink|sketch|drawing|engraving|woodcut|cartoon|"
    r"illustration|comic|anime|manga|pixel art|voxel|clip ?art|line ?art|low poly|vector|minimalist|claymation|origami|"
    r"icon|sticker|logo)\b",
    re.IGNORECASE,
)
_ARTICLES = re.compile(r"^(?:(?:an?|the|cute)\s+)+")
MAX_WORDS = 14  # the embedded model reads 24 tokens; a word has one or two


@dataclass(frozen=True)
class StyleGuide:
    """The styles of a model. In the main one it draws everything; in the others well the labels that are listed.

    `substitutes`: nouns that it reads as labels.
    """

    main_style: str
    labels_by_style: Mapping[str, frozenset[str]]
    substitutes: Mapping[str, str] = field(default_factory=dict[str, str])

    def choose_styles(self, text: str) -> tuple[str, ...]:
        """Return the styles that the pictures of a text take in turn; every other picture has the main one.

        A text of no listed label, that names a style, or of which the model would not read one more, has none.
        """
        subject, _, details = text.partition(",")
        label = self._find_label(subject)
        others = [style for style, labels in self.labels_by_style.items() if label in labels]
        is_styled = has_style(details, (self.main_style, *self.labels_by_style)) or len(text.split()) > MAX_WORDS
        return () if is_styled else tuple(style for other in others for style in (self.main_style, other))

    def _find_label(self, subject: str) -> str:
        """Return a subject as the model reads it, without articles and punctuation."""
        return _ARTICLES.sub("", replace_nouns(subject, self.substitutes).lower().strip(" .!?()"))


def has_style(text: str, styles: Iterable[str]) -> bool:
    """Return whether the text names one of these styles (in lower case), or any other."""
    lowered = text.lower()
    return any(style in lowered for style in styles) or _STYLE_WORDS.search(text) is not None
