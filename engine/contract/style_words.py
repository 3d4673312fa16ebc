"""Tells whether a text names a style of its own, such as *pencil sketch*. Pure.

It decides what is drawn (`recipe_images`): other words here need a new version of the contract.
"""

from __future__ import annotations

import re

# What people write for a style, whatever the model. Some are things as well, such as *pencil*: where a text has one of
# them, its pictures only have one style. Words that are nearly always something else (*flat*, *soft*) are left out.
_STYLE_WORDS = re.compile(
    r"\b(?:(?:style|render|photo|photograph|painting|watercolou?r|sketch|drawing|doodle|engraving|woodcut|mosaic|"
    r"cartoon|illustration|comic|icon|sticker|logo|pencil|crayon|voxel|pastel|vector|silhouette|blueprint|caricature|"
    r"fresco|lithograph)(?:s|es)?|styled|[23] ?d|8 ?bit|rendering|flat design|soft shading|(?:cel|toon) shad(?:ing|ed)|"
    r"(?:photo|hyper|sur)? ?real(?:ism|istic)|photography|monochrome|gr[ae]y ?scale|sepia|black (?:and|&) white|"
    r"(?:impression|expression|cub|minimal|pointill)is(?:m|t|tic)|painted|engraved|sketched|sketchy|illustrated|"
    r"hand drawn|cartoon(?:y|ish)|oil on canvas|in (?:oil|ink)s?|ink wash|gouache|charcoal|chalk|stained glass|anime|"
    r"manga|(?:pixel|clip|line|digital|concept|pop) ?art|art (?:deco|nouveau)|low poly|isometric|graffiti|claymation|"
    r"origami|paper ?cut|ukiyo e)\b",
    re.IGNORECASE,
)


def has_style(text: str) -> bool:
    """Return whether the text names a style; a hyphen counts as a space."""
    return _STYLE_WORDS.search(text.replace("-", " ")) is not None
