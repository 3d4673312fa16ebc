"""Checks a recipe's own parts against a model: textual inversions, control networks, autoencoder, skipped layers."""

from __future__ import annotations

from collections.abc import Sequence

from engine.contract import ControlImage, ControlModel, ModelPart, ModelProfile, Recipe, ReferenceImage
from engine.contract.rejection import JobRejected
from engine.models.family import Family, SkipsTextLayers, TakesEmbeddings, with_autoencoder


def check_parts(recipe: Recipe, family: Family) -> None:
    """Raise `JobRejected` where the model cannot skip so many layers, or has no such autoencoder."""
    max_clip_skip = family.max_clip_skip if isinstance(family, SkipsTextLayers) else 0
    if recipe.clip_skip > max_clip_skip:
        raise JobRejected(_describe_clip_skip(family.name, max_clip_skip), "member")
    with_autoencoder(family, recipe)


def with_embeddings(recipe: Recipe, family: Family) -> Recipe:
    """Return the recipe with the revision of each textual inversion. Raises `JobRejected`."""
    if not recipe.embeddings:
        return recipe
    if not isinstance(family, TakesEmbeddings):
        raise JobRejected(f"{family.name} takes no textual inversions.", "model")
    return family.with_embeddings(recipe)


def find_missing_part(recipe: Recipe, profile: ModelProfile) -> str:
    """Return which of the recipe's parts a worker lacks, by what it announces, as one sentence; empty: none."""
    if recipe.clip_skip > profile.max_clip_skip:
        return _describe_clip_skip(profile.name, profile.max_clip_skip)
    for embedding in recipe.embeddings:
        if not _is_offered(embedding, profile.embeddings):
            return f"This worker has no such version of the textual inversion {embedding.name} for {profile.name}."
    for control in recipe.controls:
        if not _is_offered(control, profile.controls):
            return f"This worker has no such version of the control network {control.name} for {profile.name}."
        if control.preprocessor not in profile.preprocessors:
            return f"This worker cannot make {control.preprocessor} control images."
    for reference in recipe.references:
        if not _is_offered(reference, profile.references):
            return f"This worker has no such version of the reference adapter {reference.name} for {profile.name}."
    if recipe.autoencoder is not None and not _is_offered(recipe.autoencoder, profile.autoencoders):
        return f"This worker has no such version of the autoencoder {recipe.autoencoder.name} for {profile.name}."
    return ""


def _is_offered(part: ModelPart | ControlImage | ReferenceImage, offered: Sequence[ModelPart | ControlModel]) -> bool:
    return any(part.name == other.name and part.revision in ("", other.revision) for other in offered)


def _describe_clip_skip(model: str, max_clip_skip: int) -> str:
    if not max_clip_skip:
        return f"The text encoder of {model} skips no layers."
    return f"The text encoder of {model} can skip at most {max_clip_skip} of its layers."
