"""Styles in the engine: each image is the picture of its own text, and words that are said later get its style."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from engine.batching.engine import Engine, LatentsDone
from engine.batching.job_images import encode_change
from engine.contract import AmendmentRequest, Concept, Interpolation, JobRejected, SetConcepts, recipe_for_image
from engine.models.families.stable_diffusion import StableDiffusion

Make = Callable[..., Any]
STYLES = ("3d render", "soft shading", "flat design")


@pytest.fixture
def styled(recipe: Make) -> Any:
    return recipe(
        "a red cat",
        model="embedded",
        steps=4,
        guidance=3.5,
        width=64,
        height=64,
        bucket=2,
        count=4,
        seed=5,
        styles=STYLES,
    )


def draw(family: StableDiffusion, job: Any, *requests: AmendmentRequest) -> dict[int, torch.Tensor]:
    engine = Engine({"embedded": family})
    latents = dict[int, torch.Tensor]()
    engine.add(job)
    engine.step()
    for request in requests:
        engine.amend(job.id, request)
    while not engine.is_idle:
        latents |= {event.image: event.latents for event in engine.step() if isinstance(event, LatentsDone)}
    return latents


def test_each_image_is_the_picture_of_its_own_text(embedded: StableDiffusion, styled: Any, job: Make) -> None:
    latents = draw(embedded, job(styled))
    texts = [recipe_for_image(styled, image).concepts[0].text for image in range(4)]
    assert len(set(texts)) == 3
    for image, text in enumerate(texts):
        alone = msgspec.structs.replace(styled, concepts=(Concept(text),), styles=(), seed=styled.seed + image, count=1)
        assert torch.equal(draw(embedded, job(alone))[0], latents[image])


def test_a_walk_between_styles_with_several_texts_is_refused(embedded: StableDiffusion, styled: Any, job: Make) -> None:
    walk = msgspec.structs.replace(
        styled, concepts=(Concept("cat"), Concept("dog")), interpolation=Interpolation(None, 0, 5, (5, 6))
    )
    with pytest.raises(JobRejected, match="one text"):
        Engine({"embedded": embedded}).add(job(walk))


def test_words_that_are_said_get_the_style_and_are_encoded_beforehand(
    embedded: StableDiffusion, styled: Any, job: Make
) -> None:
    change = SetConcepts((Concept("a blue cat"),))
    embedded.text_cache.clear()
    encode_change(styled, change, embedded)
    known = {key.text for key in embedded.text_cache.keys}
    assert known >= {f"a blue cat, {style}" for style in STYLES}
    latents = draw(embedded, job(styled), AmendmentRequest(1, change))
    assert {key.text for key in embedded.text_cache.keys} == known | {f"a red cat, {style}" for style in STYLES}
    assert len(latents) == 4
