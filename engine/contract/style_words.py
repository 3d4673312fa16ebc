"""Tells whether a text names a style of its own, such as *pencil sketch*. Pure.

It decides what is drawn (`recipe_images`): other words here need a new version of the contract.
"""

from __future__ import annotations

import re

# What people write for a style, whatever the model. Some are things as well, such as *pencil*: where a text has one of
# them, its pictures only have one style. Words that are nearly always something else (*flat*, *soft*) are left out.
_STYLE_WORDS = re.compile(
    r"\b(?:(?:style|render|photo|photograph|painting|watercolou?r|sketch|drawing|doodle|engraving|woodcut|mosaic|"
    r"cartoon|illustration|comic|icon|sticker|logo|pencil|crayon|voxel)(?:s|es)?|styled|[23] ?d|8 ?bit|rendering|"
    r"flat design|soft shading|(?:cel|toon) shad(?:ing|ed)|photorealistic|realistic|photography|monochrome|"
    r"black and white|painted|engraved|sketched|illustrated|hand drawn|oil on canvas|in oils?|in ink|ink wash|gouache|"
    r"pastel|charcoal|stained glass|anime|manga|pixel ?art|clip ?art|line ?art|digital art|low poly|vector|minimalist|"
    r"claymation|origami|paper ?cut)\b",
    re.IGNORECASE,
)


def has_style(text: str) -> bool:
    """Return whether the text names a style; a hyphen counts as a space."""
    return _STYLE_WORDS.search(text.replace("-", " ")) is not None
