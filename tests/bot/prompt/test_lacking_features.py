"""What a model behind another server lacks is refused before the queue, with a sentence that says what to leave out."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from bot.domain.errors import UserError
from bot.prompt.capability_check import check_capabilities, check_features, check_start, choose_interval
from engine.contract import (
    Amendment,
    Branch,
    Concept,
    Feature,
    ImageToImage,
    InitImage,
    Interpolation,
    ModelProfile,
    NoiseAncestor,
    Recipe,
    SetNegative,
    find_lacking_feature,
)

SHA = "a" * 64
PROFILE = ModelProfile(
    name="gpt-image-1",
    revision="1",
    dtype="float16",
    size=64,
    multiple=8,
    max_pixels=4096,
    tokens=77,
    steps=4,
    sampler="euler",
    guidance=7.0,
    row_ms=1.0,
    encode_ms=0.0,
    decode_ms=0.0,
    samplers=("euler", "heun"),
)
RECIPE = Recipe(
    concepts=(Concept("a lamp"),),
    model="gpt-image-1",
    sampler="euler",
    steps=4,
    seed=1,
    guidance=7.0,
    width=64,
    height=64,
    dtype="float16",
)
CHANGES: dict[Feature, dict[str, Any]] = {
    "weights": {"concepts": (Concept("a"), Concept("b", 2.0))},
    "negative": {"negative": "blur"},
    "steps": {"steps": 5},
    "guidance": {"guidance": 3.0},
    "interval": {"guidance_start": 0.2},
    "variation": {"lineage": (NoiseAncestor(1, 0, 0.2),)},
    "picture": {"start": ImageToImage((InitImage(SHA),), 0.5)},
    "mask": {"start": ImageToImage((InitImage(SHA),), 0.5, SHA)},
    "strength": {"start": ImageToImage((InitImage(SHA),), 0.5)},
    "blend": {"start": ImageToImage((InitImage(SHA), InitImage(SHA)), 1.0)},
    "branch": {"start": Branch(SHA, 2)},
    "tile": {"tile": True},
    "stop": {"stop_at": 0.5},
    "mix": {"concepts": (Concept("a"), Concept("b")), "mixed": True},
    "walk": {"interpolation": Interpolation("b", 0, 12)},
    "amendments": {"amendments": (Amendment(1, 1, SetNegative("blur")),)},
    "evaluations": {"evaluations": 3},
}


@pytest.mark.parametrize("feature", get_args(Feature))
def test_a_recipe_with_a_lacking_feature_is_refused_with_a_sentence(feature: Feature) -> None:
    profile = replace(PROFILE, lacks=(feature,))
    recipe = replace(RECIPE, **CHANGES[feature])
    assert find_lacking_feature(recipe, profile) == feature
    assert find_lacking_feature(recipe, PROFILE) is None
    assert find_lacking_feature(RECIPE, replace(PROFILE, lacks=get_args(Feature))) is None
    with pytest.raises(UserError, match=r"^gpt-image-1 [a-z].*\.$"):
        check_features(recipe, profile)
    with pytest.raises(UserError):
        check_start(recipe, profile)


def test_a_backend_draws_with_a_sampler_of_whole_pipelines_as_with_any_other() -> None:
    recipe = replace(RECIPE, sampler="heun", **CHANGES["picture"])
    check_capabilities(recipe, replace(PROFILE, lacks=("walk",)))
    with pytest.raises(UserError, match="unmodified pipeline"):
        check_capabilities(recipe, PROFILE)


def test_a_model_without_intervals_is_given_none_by_default() -> None:
    assert choose_interval(None, (0.2, 0.8), "euler", PROFILE) == (0.2, 0.8)
    assert choose_interval(None, (0.2, 0.8), "euler", replace(PROFILE, lacks=("interval",))) == (0.0, 1.0)


def test_an_edit_by_words_or_within_a_mask_needs_no_strength() -> None:
    profile = replace(PROFILE, lacks=("strength",), edits=True)
    assert find_lacking_feature(replace(RECIPE, start=ImageToImage((InitImage(SHA),), 1.0)), profile) is None
    assert find_lacking_feature(replace(RECIPE, start=ImageToImage((InitImage(SHA),), 0.5, SHA)), profile) is None
