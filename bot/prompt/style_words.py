"""Finds out whether a prompt names a style, so that it needs none of the model's. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What people write for a style, whatever the model. Words that are as often a thing ("flat", "soft") are no part of it.
_STYLE_WORDS = re.compile(
    r"\b(?:style|styled|2d|3d|render|rendering|photo|photograph|photorealistic|realistic|painting|painted|oil|"
    r"watercolou?r|gouache|pastel|pencil|charcoal|ink|sketch|drawing|engraving|woodcut|illustration|cartoon|comic|anime|"
    r"manga|pixel art|voxel|clip ?art|line ?art|low poly|vector|minimalist|claymation|origami|icon|sticker|logo)\b",
    re.IGNORECASE,
)


def names_style(text: str, styles: Iterable[str]) -> bool:
    """Return whether the text names one of the model's styles, or any other."""
    lowered = text.lower()
    return any(style.lower() in lowered for style in styles) or _STYLE_WORDS.search(text) is not None
