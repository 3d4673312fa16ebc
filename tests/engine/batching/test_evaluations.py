"""Images with few evaluations in the engine: where they stand, what they keep, and what a branch goes on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.batching.engine import Engine, LatentsDone, StepDone
from engine.batching.input_pictures import InitLatents
from engine.batching.model_inputs import Noise
from engine.batching.trajectory import Trajectory
from engine.contract import Branch, ImageToImage, InitImage, Job, list_evaluated_steps
from engine.sampling import COLUMNS
from shared.init_image_jobs import encode_ladder, hash_blobs, run_job

Make = Callable[..., Any]
SHA = "b" * 64


def run(affine: Any, one: Job, init_latents: InitLatents | None = None) -> tuple[list[int], LatentsDone]:
    """Returns the steps of an image's events, and the image."""
    engine = Engine({"affine": affine})
    steps = list[int]()
    images = list[LatentsDone]()
    engine.add(one, (), init_latents)
    while not engine.is_idle:
        for event in engine.step():
            steps += [event.step] if isinstance(event, StepDone) else []
            images += [event] if isinstance(event, LatentsDone) else []
    return steps, images[0]


def test_progress_and_keyframes_are_named_by_steps_of_the_chain(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe("fox", steps=200, evaluations=20, guidance=1.0))
    steps, image = run(affine, one)
    evaluated = list(list_evaluated_steps(one.task))
    assert affine.shapes == [1] * 20, "one forward for each evaluation"
    assert steps == [*evaluated[1:], 200]
    assert [keyframe.step for keyframe in image.keyframes] == steps


def test_a_stopped_picture_ends_with_the_estimate_of_its_last_step(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe("fox", steps=200, evaluations=20, guidance=1.0, stop_at=0.6))
    steps, image = run(affine, one)
    assert steps[-2:] == [119, 120]
    assert torch.equal(image.latents, image.keyframes[-1].x0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "dpmpp_2m"])
def test_a_branch_without_a_change_is_the_same_picture(affine: Any, recipe: Make, job: Make, sampler: str) -> None:
    fields = {"sampler": sampler, "steps": 100, "evaluations": 30, "guidance": 2.0}
    one = job(recipe("fox", guidance_start=0.3, guidance_stop=0.8, **fields))
    [original] = run_job(one, {}, affine)
    ladder = hash_blobs(encode_ladder(original, one))
    steps = [keyframe.step for keyframe in original.keyframes if keyframe.latents is not None]
    for step in steps[:-1]:
        start = Branch(next(iter(ladder)), step)
        branch = job(recipe("fox", guidance_start=0.3, guidance_stop=0.8, start=start, **fields))
        [continued] = run_job(branch, ladder, affine)
        assert torch.equal(continued.latents, original.latents), step


@pytest.mark.parametrize("sampler", ["ddpm", "euler"])
def test_outside_a_mask_the_picture_stays_and_inside_it_is_as_without(
    affine: Any, recipe: Make, job: Make, sampler: str
) -> None:
    """The affine network mixes no positions, so the inside must equal a picture without a mask."""
    clean = torch.linspace(-1, 1, 64).view(4, 4, 4)
    mask = torch.zeros(1, 4, 4)
    mask[:, :, :2] = 1.0
    fields = {"sampler": sampler, "steps": 100, "evaluations": 20, "guidance": 1.0}
    start = ImageToImage((InitImage(SHA),), 0.6, SHA)
    _, masked = run(affine, job(recipe("fox", start=start, **fields)), InitLatents(clean, mask=mask))
    plain_start = ImageToImage((InitImage(SHA),), 0.6)
    _, plain = run(affine, job(recipe("fox", start=plain_start, **fields)), InitLatents(clean))
    assert torch.equal(masked.latents[:, :, 2:], clean[:, :, 2:])
    torch.testing.assert_close(masked.latents[:, :, :2], plain.latents[:, :, :2])


def test_a_row_draws_the_noise_of_all_of_its_steps(affine: Any, recipe: Make, job: Make) -> None:
    """With x0 at zero and no network, what remains of the latents is the noise of the full plan."""
    one = job(recipe("fox", steps=50, evaluations=10, guidance=1.0))
    engine = Engine({"affine": affine})
    engine.add(one)
    [image] = engine._images[one.id]
    assert isinstance(image, Trajectory)
    full = affine.plan("ddpm", 50, 0.0, 32, 32)
    step = list_evaluated_steps(one.task)[4]
    expected = torch.zeros(4, 4, 4)
    noise = Noise(one.task, 0, (4, 4, 4))
    for k in range(step, image.plan.next_step(step)):
        row = dict(zip(COLUMNS, full.table[k].tolist(), strict=True))
        kept = row["A"] - row["B"] * row["P"] / row["Q"]
        expected = kept * expected + row["N"] * noise.row_noise(k, full)
    scale = float(image.plan.coefficients_at(step)[COLUMNS.index("N")])
    torch.testing.assert_close(scale * image.noise.row_noise(step, image.plan), expected, rtol=1e-5, atol=1e-6)
