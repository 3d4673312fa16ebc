"""Checks a recipe's own parts against a model: textual inversions, control networks, autoencoder, skipped layers."""

from __future__ import annotations

from engine.contract import ModelProfile, Recipe, find_missing_part
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


def describe_missing_part(recipe: Recipe, profile: ModelProfile) -> str:
    """Return which of the recipe's parts a worker lacks, by what it announces, as one sentence; empty: none."""
    missing = find_missing_part(recipe, profile)
    if missing is None:
        return ""
    if missing.kind == "skipped layers":
        return _describe_clip_skip(profile.name, profile.max_clip_skip)
    if missing.kind == "preprocessor":
        return f"This worker cannot make {missing.name} control images."
    return f"This worker has no such version of the {missing.kind} {missing.name} for {profile.name}."


def _describe_clip_skip(model: str, max_clip_skip: int) -> str:
    if not max_clip_skip:
        return f"The text encoder of {model} skips no layers."
    return f"The text encoder of {model} can skip at most {max_clip_skip} of its layers."
