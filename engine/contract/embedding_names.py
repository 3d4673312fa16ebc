"""Names of textual inversions in prompts, as bot and engine both find them. Pure.

A name counts as a whole word, as AUTOMATIC1111 reads it, and in angle brackets, as diffusers' concepts are written:
`photo by <name>`. Case does not matter, since CLIP's tokenizer has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from engine.contract.recipe import ModelPart


@lru_cache(maxsize=64)
def compile_embedding_names(names: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of these names: a match is the name with its brackets, group 1 or 2 the name alone.

    Longer names win. Without names it matches nothing.
    """
    if not names:
        return re.compile(r"(?!)()()")
    choices = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    # Only ASCII letters have two cases here: names have no others, and `ſ` is no `s`.
    return re.compile(rf"<((?ai:{choices}))>|(?<![\w<-])((?ai:{choices}))(?![\w>-])")


def find_embeddings(texts: Iterable[str], embeddings: Sequence[ModelPart]) -> tuple[ModelPart, ...]:
    """Return those whose names occur in the texts, in their own order."""
    pattern = compile_embedding_names(tuple(part.name for part in embeddings))
    written_names = {(match[1] or match[2]).lower() for text in texts for match in pattern.finditer(text)}
    return tuple(part for part in embeddings if part.name.lower() in written_names)
