"""Branches of steered pictures: each goes on with the noise and the words that its image had at the keyframe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from bot.jobs.beginnings import branch_base
from engine.contract import Amendment, Branch, Change, Concept, DropImages, Job, Recipe, SetConcepts, SplitImage
from shared.init_image_jobs import encode_ladder, hash_blobs, run_job

Make = Callable[..., Any]
STEPS = 60
SPLIT = SplitImage(0, (1, 3), 77)
DROP = DropImages((0,))
TERRIER = SetConcepts((Concept("terrier"),))
SEA = SetConcepts((Concept("sea"),), fade_steps=8)


def amend(recipe: Recipe, *amendments: tuple[int, Change]) -> Recipe:
    numbered = tuple(Amendment(number, step, change) for number, (step, change) in enumerate(amendments, 1))
    return msgspec.structs.replace(recipe, amendments=numbered)


@pytest.fixture
def draw(affine: Any, job: Make, recipe: Make) -> Callable[..., tuple[Job, dict[int, Any]]]:
    """Draws a picture of a fox with these amendments; returns its job and its images."""

    def make(*amendments: tuple[int, Change], sampler: str = "ddpm") -> tuple[Job, dict[int, Any]]:
        task = recipe("fox", sampler=sampler, steps=STEPS, guidance=3.0, count=1, bucket=4)
        one = job(amend(task, *amendments))
        return one, {image.image: image for image in run_job(one, {}, affine)}

    return make


def draw_branch(affine: Any, original: Job, image: Any, step: int, end: int | None = None) -> torch.Tensor:
    assert isinstance(original.task, Recipe)
    blobs = hash_blobs(encode_ladder(image, original))
    base = branch_base(original.task, image.image, step, end)
    branch = msgspec.structs.replace(base, start=Branch(next(iter(blobs)), step))
    [drawn] = run_job(msgspec.structs.replace(original, task=branch), blobs, affine)
    return drawn.latents


def list_branch_steps(image: Any) -> list[int]:
    return [keyframe.step for keyframe in image.keyframes if keyframe.latents is not None]


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_branch_of_a_split_image_goes_on_with_its_noise(affine: Any, draw: Any, sampler: str) -> None:
    split_step = 25
    original, images = draw((10, TERRIER), (split_step, SPLIT), (split_step + 5, DROP), sampler=sampler)
    _, parents = draw((10, TERRIER), sampler=sampler)
    assert sorted(images) == [1, 3]
    steps = [step for step in list_branch_steps(images[3]) if step > 10]
    assert min(steps) <= split_step < max(steps)
    for step in steps:
        expected = images[3].latents if step > split_step else parents[0].latents
        assert torch.equal(draw_branch(affine, original, images[3], step), expected), step


def test_a_branch_before_a_step_undoes_what_was_said_from_there_on(affine: Any, draw: Any) -> None:
    original, images = draw((10, TERRIER), (25, SEA), (40, TERRIER))
    _, without_last = draw((10, TERRIER), (25, SEA))
    keyframe_steps = list_branch_steps(images[0])
    expected = without_last[0].latents
    for step in (each for each in keyframe_steps if 10 < each <= 40):
        assert torch.equal(draw_branch(affine, original, images[0], step, 40), expected), step
    fading_step = next(step for step in keyframe_steps if 25 < step < 33)
    assert torch.equal(draw_branch(affine, original, images[0], fading_step), expected), (
        "a branch amid a fade goes on to its end"
    )
