"""Branching from a keyframe with another number of steps, and continuing a picture that stopped early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.batching.engine import LatentsDone
from engine.batching.job_images import build_images
from engine.batching.model_inputs import Noise
from engine.batching.trajectory import Trajectory
from engine.contract import Branch, JobRejected, Keyframe, Ladder, encode, map_step
from engine.models.families.stable_diffusion import StableDiffusion
from engine.sampling import COLUMNS
from shared.init_image_jobs import (
    Blobs,
    draw_scene,
    encode_ladder,
    hash_blobs,
    load_init,
    make_image_to_image,
    run_job,
    to_bytes,
)
from shared.picture_files import encode_picture

Make = Callable[..., Any]
SAMPLERS = ["ddim", "ddpm", "euler", "dpmpp_2m_karras"]


@pytest.fixture
def draw_unbranched(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> Callable[..., tuple[LatentsDone, Blobs]]:
    """Draws a picture without a branch; returns it and its ladder as blobs."""

    def make(**fields: Any) -> tuple[LatentsDone, Blobs]:
        one = job(build_recipe(**fields))
        [original] = run_job(one, {}, embedded)
        return original, hash_blobs(encode_ladder(original, one))

    return make


def branch(blobs: Blobs, keyframe_step: int, total_steps: int, steps: int, **fields: Any) -> Branch:
    return Branch(next(iter(blobs)), map_step(keyframe_step, total_steps, steps), ladder_step=keyframe_step, **fields)


def single_keyframe_ladder(family: StableDiffusion, history: bytes | None) -> Blobs:
    """A ladder of eight steps with one keyframe after the fourth."""
    shape = tuple(family.latent_shape(64, 64))
    keyframes = (Keyframe(4, b"", to_bytes(torch.ones(shape)), history, 1),)
    return hash_blobs(
        encode(Ladder(job="01J00000000000000000000000", image=0, total_steps=8, shape=shape, keyframes=keyframes))
    )


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Measures the distance between both, relative to the norm of `other`."""
    return float((one - other).norm() / other.norm())


def test_a_keyframe_maps_to_the_same_share_of_the_steps_or_just_after() -> None:
    assert [map_step(400, 1000, steps) for steps in (1000, 500, 50, 30, 3)] == [400, 200, 20, 12, 2]
    assert [map_step(16, 48, steps) for steps in (96, 100, 1000)] == [32, 34, 334]
    assert map_step(996, 1000, 50) == 50  # no step is left


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_branch_with_double_the_steps_predicts_the_same_next_x0(
    embedded: StableDiffusion, build_recipe: Make, job: Make, draw_unbranched: Make, sampler: str
) -> None:
    original, blobs = draw_unbranched(steps=24, sampler=sampler, stop_at=13 / 24)
    start = branch(blobs, 12, 24, 48)
    [with_more_steps] = run_job(
        job(build_recipe(steps=48, sampler=sampler, start=start, stop_at=25 / 48)), blobs, embedded
    )
    before, after = ({keyframe.step: keyframe.x0 for keyframe in one.keyframes} for one in (original, with_more_steps))
    assert list(after) == [25]
    has_equal_levels = "karras" not in sampler  # step 25 of 48 is then as noisy as step 13 of 24
    assert relative_distance(after[25], before[13]) < (0.02 if has_equal_levels else 0.04)
    assert relative_distance(after[25], before[13]) < relative_distance(before[12], before[13])


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 50), ("dpmpp_2m", 10)])
def test_a_branch_of_a_deterministic_sampler_ends_near_the_original(
    embedded: StableDiffusion, build_recipe: Make, job: Make, draw_unbranched: Make, sampler: str, steps: int
) -> None:
    original, blobs = draw_unbranched(steps=24, sampler=sampler)
    start = branch(blobs, 16, 24, steps)
    [other] = run_job(job(build_recipe(steps=steps, sampler=sampler, start=start)), blobs, embedded)
    assert 0.0 < relative_distance(other.latents, original.latents) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_picture_that_stopped_early_continues_bit_for_bit(
    embedded: StableDiffusion, build_recipe: Make, job: Make, draw_unbranched: Make, sampler: str
) -> None:
    """The last keyframe always keeps its latents."""
    original, _ = draw_unbranched(steps=9, sampler=sampler)
    _, blobs = draw_unbranched(steps=9, sampler=sampler, stop_at=0.6)
    start = Branch(next(iter(blobs)), 5)
    [continued] = run_job(job(build_recipe(steps=9, sampler=sampler, start=start)), blobs, embedded)
    assert torch.equal(continued.latents, original.latents)


@pytest.mark.slow
def test_a_branch_of_a_branch_or_of_an_init_image_draws_the_remaining_noise(
    embedded: StableDiffusion, build_recipe: Make, job: Make, draw_unbranched: Make
) -> None:
    """A branch of an image-to-image job, and a branch of a branch with another number of steps."""
    picture, blobs = make_image_to_image([encode_picture(draw_scene())], 0.9)
    _, ladder = draw_unbranched(steps=8)
    with_more_steps = branch(ladder, 4, 8, 10)
    for job_start, needed_blobs in ((picture, blobs), (with_more_steps, ladder)):
        one = job(build_recipe(steps=10, start=job_start))
        [original] = run_job(one, needed_blobs, embedded)
        steps_with_latents = [keyframe.step for keyframe in original.keyframes if keyframe.latents is not None]
        ladder_of_branch = hash_blobs(encode_ladder(original, one))
        [same_branch] = run_job(
            job(build_recipe(steps=10, start=Branch(next(iter(ladder_of_branch)), steps_with_latents[0]))),
            ladder_of_branch,
            embedded,
        )
        assert torch.equal(same_branch.latents, original.latents)


def test_a_branch_never_draws_the_noise_of_earlier_steps_again(
    embedded: StableDiffusion, build_recipe: Make, job: Make, draw_unbranched: Make
) -> None:
    _, blobs = draw_unbranched(steps=12)
    one = job(build_recipe(steps=4, start=branch(blobs, 8, 12, 4)))
    [image] = build_images(one, {"embedded": embedded}, init_latents=load_init(one, blobs, embedded))
    assert isinstance(image, Trajectory)
    straight_on = Noise(one.task, 0, tuple(embedded.latent_shape(64, 64)))
    plan = embedded.plan("ddpm", 12, 0.0, 64, 64)
    assert torch.equal(image.noise.row_noise(3, image.plan), straight_on.row_noise(8, plan))


def test_a_multistep_sampler_drops_history_of_another_step_size(
    embedded: StableDiffusion, build_recipe: Make, job: Make, draw_unbranched: Make
) -> None:
    _, blobs = draw_unbranched(steps=8, sampler="dpmpp_2m", stop_at=0.5)
    for steps, keeps_history in ((8, True), (16, False)):
        start = Branch(next(iter(blobs)), 4) if steps == 8 else branch(blobs, 4, 8, steps)
        one = job(build_recipe(steps=steps, sampler="dpmpp_2m", start=start))
        [image] = build_images(one, {"embedded": embedded}, init_latents=load_init(one, blobs, embedded))
        assert isinstance(image, Trajectory)
        m = COLUMNS.index("M")
        assert bool(image.plan.table[start.step, m]) is keeps_history
        assert image.plan.table[start.step + 1, m] != 0.0


@pytest.mark.parametrize(
    ("step", "keyframe_step", "steps"), [(9, 4, 16), (8, 4, 8), (4, 8, 8), (4, None, 16), (8, 8, 16)], ids=str
)
def test_a_branch_whose_step_does_not_match_its_keyframe_is_refused(
    embedded: StableDiffusion, build_recipe: Make, job: Make, step: int, keyframe_step: int | None, steps: int
) -> None:
    blobs = single_keyframe_ladder(embedded, to_bytes(torch.ones(embedded.latent_shape(64, 64))))
    start = Branch(next(iter(blobs)), step, ladder_step=keyframe_step)
    with pytest.raises(JobRejected, match="another number of steps"):
        load_init(job(build_recipe(steps=steps, start=start)), blobs, embedded)
