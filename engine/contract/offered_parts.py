"""Whether a worker offers all parts that a recipe needs of its model, as bot and worker both decide it. Pure.

A part without a revision is any of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from engine.contract.presence import ControlModel, ModelProfile
from engine.contract.recipe import ControlImage, ModelPart, Recipe, ReferenceImage

PartKind = Literal[
    "skipped layers", "textual inversion", "control network", "reference adapter", "autoencoder", "preprocessor"
]


class MissingPart(NamedTuple):
    """What a worker lacks; skipped layers have no name."""

    kind: PartKind
    name: str = ""


def find_missing_part(recipe: Recipe, model: ModelProfile) -> MissingPart | None:
    """Return the first part of the recipe that a worker lacks, by what it announces; None: it has all."""
    return next(_list_missing_parts(recipe, model), None)


def _list_missing_parts(recipe: Recipe, model: ModelProfile) -> Iterator[MissingPart]:
    if recipe.clip_skip > model.max_clip_skip:
        yield MissingPart("skipped layers")
    yield from _list_missing("textual inversion", recipe.embeddings, model.embeddings)
    yield from _list_missing("control network", recipe.controls, model.controls)
    yield from _list_missing("reference adapter", recipe.references, model.references)
    yield from _list_missing("autoencoder", (recipe.autoencoder,) if recipe.autoencoder else (), model.autoencoders)
    for control in recipe.controls:
        if control.preprocessor not in ("none", *model.preprocessors):
            yield MissingPart("preprocessor", control.preprocessor)


def _list_missing(
    kind: PartKind,
    needed: Sequence[ModelPart | ControlImage | ReferenceImage],
    offered: Sequence[ModelPart | ControlModel],
) -> Iterator[MissingPart]:
    for part in needed:
        if not any(part.name == other.name and part.revision in ("", other.revision) for other in offered):
            yield MissingPart(kind, part.name)
