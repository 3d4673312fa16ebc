"""Init images, branches, early ends, tiles and mixed texts in the engine's shared batch."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from engine.batching.engine import Engine, LatentsDone
from engine.batching.job_images import build_images
from engine.contract import Branch, Concept, Job, JobRejected
from engine.models.families.stable_diffusion import StableDiffusion
from engine.output.decode_worker import DecodeWorker
from engine.worker.local_run import run_locally
from shared.init_image_jobs import (
    Blobs,
    add_job,
    draw_half_mask,
    draw_scene,
    encode_ladder,
    hash_blobs,
    make_image_to_image,
    run_job,
)
from shared.picture_files import encode_picture

Make = Callable[..., Any]
TIMEOUT = 60.0


def run_together(family: StableDiffusion, jobs: list[tuple[Job, Blobs]]) -> dict[tuple[str, int], torch.Tensor]:
    """Runs all jobs in one engine, each added two steps after the one before."""
    engine = Engine({"embedded": family})
    latents_by_image = dict[tuple[str, int], torch.Tensor]()
    waiting_jobs = list(jobs)
    while waiting_jobs or not engine.is_idle:
        if waiting_jobs:
            add_job(engine, *waiting_jobs.pop(0), family)
        for event in (*engine.step(), *engine.step()):
            if isinstance(event, LatentsDone):
                latents_by_image[event.job, event.image] = event.latents
    return latents_by_image


@pytest.mark.slow
def test_all_kinds_of_jobs_in_one_batch_draw_the_same_as_alone(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.6)
    masked_start, blended_start = make_image_to_image(
        [encode_picture(draw_scene())], 0.8, encode_picture(draw_half_mask())
    )
    jobs = [
        (job(build_recipe(steps=9)), {}),
        (job(build_recipe(steps=9, start=start, sampler="dpmpp_2m")), blobs),
        (job(build_recipe(steps=8, start=masked_start, count=2)), blended_start),
        (job(build_recipe(steps=7, tile=True, sampler="euler")), {}),
        (job(build_recipe(steps=9, stop_at=0.5, sampler="ddim")), {}),
        (job(build_recipe(steps=6, mixed=True, concepts=(Concept("a dog"), Concept("a tree", 2.0)))), {}),
    ]
    shared_images = run_together(embedded, jobs)
    for each, job_blobs in jobs:
        for event in run_job(each, job_blobs, embedded):
            assert torch.equal(shared_images[each.id, event.image], event.latents), each.task


def test_a_lower_strength_stays_nearer_to_the_init_image(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    z = embedded.encode_image(draw_scene())
    distances = []
    for strength in (0.05, 0.5, 1.0):
        start, blobs = make_image_to_image([encode_picture(draw_scene())], strength)
        [event] = run_job(job(build_recipe(steps=10, start=start, sampler="ddim")), blobs, embedded)
        distances.append(float((event.latents - z).square().mean()))
    assert distances[0] < 0.1 * distances[2]
    assert distances[0] < distances[1] < distances[2]


def test_a_ladder_covers_only_the_steps_that_run(affine: Any, recipe: Make, job: Make) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.5)
    [event] = run_job(job(recipe(steps=200, start=start, stop_at=0.8)), blobs, affine)
    steps = [keyframe.step for keyframe in event.keyframes]
    assert steps[0] == 101
    assert steps[-1] == 160
    assert 30 <= len(steps) <= 48
    with_latents = [keyframe for keyframe in event.keyframes if keyframe.latents is not None]
    assert len(with_latents) == len(steps) // 4


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ddpm", "euler", "dpmpp_2m_sde"])
def test_an_unchanged_branch_equals_the_original_bit_for_bit(
    embedded: StableDiffusion, build_recipe: Make, job: Make, sampler: str
) -> None:
    straight_job = job(build_recipe(steps=12, sampler=sampler))
    [original] = run_job(straight_job, {}, embedded)
    blobs = hash_blobs(encode_ladder(original, straight_job))
    for step in (4, 8):
        start = Branch(next(iter(blobs)), step)
        [branch_image] = run_job(job(build_recipe(steps=12, sampler=sampler, start=start)), blobs, embedded)
        assert torch.equal(branch_image.latents, original.latents)
        [other] = run_job(job(build_recipe("a blue car", steps=12, sampler=sampler, start=start)), blobs, embedded)
        [fresh_image] = run_job(
            job(build_recipe(steps=12, sampler=sampler, start=Branch(start.ladder, step, has_new_noise=True), seed=8)),
            blobs,
            embedded,
        )
        for different_image in (other, fresh_image):
            assert float((different_image.latents - original.latents).abs().max()) > 0.01


@pytest.mark.slow
def test_fresh_branches_of_one_keyframe_differ_from_each_other(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    """DDIM draws no noise on its way: without fresh noise all branches would be the same picture."""
    straight_job = job(build_recipe(steps=12, sampler="ddim"))
    [original] = run_job(straight_job, {}, embedded)
    blobs = hash_blobs(encode_ladder(original, straight_job))
    images = {}
    for is_fresh in (False, True):
        start = Branch(next(iter(blobs)), 4, has_new_noise=is_fresh)
        images[is_fresh] = run_job(job(build_recipe(steps=12, sampler="ddim", start=start, count=2)), blobs, embedded)
    assert torch.equal(images[False][0].latents, images[False][1].latents)
    assert float((images[True][0].latents - images[True][1].latents).abs().max()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("has_mask", [False, True])
def test_a_resumed_job_with_an_init_image_draws_the_same_picture(
    embedded: StableDiffusion, build_recipe: Make, job: Make, sampler: str, has_mask: bool
) -> None:
    start, blobs = make_image_to_image(
        [encode_picture(draw_scene())], 0.8, encode_picture(draw_half_mask()) if has_mask else None
    )
    one = job(build_recipe(steps=15, sampler=sampler, start=start, count=2))
    expected = run_job(one, blobs, embedded)
    snapshots: list[Any] = []
    for steps in (3, 4, 2):
        engine = Engine({"embedded": embedded})
        add_job(engine, one, blobs, embedded, snapshots)
        for _ in range(steps):
            engine.step()
        snapshots = engine.take_snapshots(one.id, epoch=1)
    assert [snapshot.next_step for snapshot in snapshots] == [3 + 9, 3 + 9]
    for event, other in zip(run_job(one, blobs, embedded, snapshots), expected, strict=True):
        assert torch.equal(event.latents, other.latents)
        assert [keyframe.step for keyframe in event.keyframes] == [keyframe.step for keyframe in other.keyframes]
        for actual_keyframe, expected_keyframe in zip(event.keyframes, other.keyframes, strict=True):
            assert torch.equal(actual_keyframe.x0, expected_keyframe.x0)
            assert (actual_keyframe.latents is None) == (expected_keyframe.latents is None)


def test_a_snapshot_from_before_the_first_step_is_ignored(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 0.5)
    one = job(build_recipe(steps=10, start=start))
    engine = Engine({"embedded": embedded})
    add_job(engine, one, blobs, embedded)
    [snapshot] = engine.take_snapshots(one.id, epoch=1)
    early_snapshot = msgspec.structs.replace(snapshot, next_step=2, x=b"\0" * len(snapshot.x))
    [event] = run_job(one, blobs, embedded, [early_snapshot])
    assert torch.equal(event.latents, run_job(one, blobs, embedded)[0].latents)


def test_latents_outside_the_mask_stay_unchanged(embedded: StableDiffusion, build_recipe: Make, job: Make) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], 1.0, encode_picture(draw_half_mask()))
    z = embedded.encode_image(draw_scene())
    one = job(build_recipe(steps=8, start=start))
    engine = Engine({"embedded": embedded})
    all_latents = []
    add_job(engine, one, blobs, embedded)
    engine.watch(one.id)
    while not engine.is_idle:
        for event in engine.step():
            latents = event.latents if isinstance(event, LatentsDone) else getattr(event, "x0", None)
            assert latents is not None
            all_latents.append(latents)
    for latents in all_latents:
        assert torch.equal(latents[..., :4], z[..., :4])
    assert float((all_latents[-1][..., 4:] - z[..., 4:]).abs().max()) > 0.1


@pytest.mark.slow
def test_an_early_end_returns_the_x0_of_that_step(embedded: StableDiffusion, build_recipe: Make, job: Make) -> None:
    [original] = run_job(job(build_recipe(steps=20)), {}, embedded)
    expected = {keyframe.step: keyframe.x0 for keyframe in original.keyframes} | {20: original.latents}
    for end_fraction, last in ((0.5, 10), (0.01, 1), (0.97, 19), (1.0, 20)):
        one = job(build_recipe(steps=20, stop_at=end_fraction))
        [event] = run_job(one, {}, embedded)
        assert event.keyframes[-1].step == last, end_fraction
        assert torch.equal(event.latents, expected[last]), end_fraction


def test_a_text_mixed_with_itself_equals_the_text_in_as_many_rows(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    single_concept_job = job(build_recipe("a red cat", steps=6))
    repeated_concept_job = job(
        build_recipe(steps=6, mixed=True, concepts=(Concept("a red cat", 2.0), Concept("a red cat", 2.0)))
    )
    [image], [other] = (
        build_images(each, {"embedded": embedded}) for each in (single_concept_job, repeated_concept_job)
    )
    assert image.rows == other.rows == 2
    single, repeated = (run_job(each, {}, embedded)[0].latents for each in (single_concept_job, repeated_concept_job))
    assert torch.equal(single, repeated)  # equal weights: their sum of halves is exact


@pytest.mark.slow
def test_mixed_texts_draw_latents_between_those_of_each_text(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    """The larger the weight of a text, the nearer the latents are to it."""

    def latents(first: float, second: float) -> torch.Tensor:
        concepts = (Concept("red apple", first), Concept("blue car", second))
        [event] = run_job(job(build_recipe(steps=8, mixed=True, sampler="ddim", concepts=concepts)), {}, embedded)
        return event.latents

    [apple_image] = run_job(job(build_recipe("red apple", steps=8, sampler="ddim")), {}, embedded)
    distances = [float((latents(1, share) - apple_image.latents).square().mean()) for share in (0.02, 0.5, 5.0)]
    assert distances[0] < distances[1] < distances[2]


def test_mixed_conditions_are_the_weighted_mean(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe(mixed=True, concepts=(Concept("sea", 1.0), Concept("fog", 3.0)), guidance=1.0))
    [image] = build_images(one, {"affine": affine})
    sea, fog = (affine.encode_conditioning(text, one.task)[0] for text in ("sea", "fog"))
    torch.testing.assert_close(image.model_inputs.conditioning[0], (0.25 * sea + 0.75 * fog)[None])  # pyright: ignore


@pytest.mark.parametrize(
    ("fields", "reason", "blame"),
    [
        ({"mixed": True, "concepts": (Concept("sea"), Concept("fog", -1.0))}, "needs a weight above 0", "member"),
        ({"mixed": True, "concepts": (Concept("sea"), Concept("fog", 0.0))}, "needs a weight above 0", "member"),
        ({"start": Branch("a" * 64, 6), "stop_at": 0.5}, "but begin after step", "member"),
        ({"start": Branch("a" * 64, 10)}, "but begin after step", "member"),
        ({"start": Branch("a" * 64, 5)}, "did not reach the engine", "us"),
    ],
)
def test_a_job_that_cannot_start_is_refused_in_one_sentence(
    affine: Any, recipe: Make, job: Make, fields: dict[str, Any], reason: str, blame: str
) -> None:
    with pytest.raises(JobRejected, match=reason) as error:
        build_images(job(recipe(steps=10, **fields)), {"affine": affine})
    assert error.value.blame == blame


@pytest.mark.parametrize(
    "fields",
    [{"tile": True}, {"stop_at": 0.5}, {"mixed": True}, {"start": Branch("a" * 64, 5)}],
    ids=["tile", "until", "mixed", "branch"],
)
def test_options_that_whole_pipelines_lack_name_a_sampler_to_use(
    embedded: StableDiffusion, build_recipe: Make, job: Make, fields: dict[str, Any]
) -> None:
    one = job(build_recipe(steps=10, sampler="unipc", **fields))
    decode_worker = DecodeWorker({"embedded": embedded})
    try:
        if "start" in fields:
            with pytest.raises(JobRejected, match="take the sampler ddim"):
                decode_worker.encode_init_images(one, {}).result(TIMEOUT)
        with pytest.raises(JobRejected, match="take the sampler ddim"):
            build_images(one, {"embedded": embedded})
    finally:
        decode_worker.close()


def test_a_network_without_neighbourhood_draws_the_same_with_tiling(affine: Any, recipe: Make, job: Make) -> None:
    """The shift before the network is undone after it."""
    plain_image, tiled_image = (run_job(job(recipe(steps=10, tile=each)), {}, affine)[0] for each in (False, True))
    assert torch.equal(plain_image.latents, tiled_image.latents)


def test_tiling_shifts_the_seam_through_every_position(affine: Any, recipe: Make, job: Make) -> None:
    engine = Engine({"affine": affine})
    one = job(recipe(steps=48, tile=True))
    engine.add(one)
    [image] = engine._images[one.id]
    shift_pairs = set[Any]()
    while not engine.is_idle:
        shift_pairs.add(getattr(image, "shift", None))
        engine.step()
    assert {down for down, _ in shift_pairs} == {right for _, right in shift_pairs} == set(range(4))
    assert len(shift_pairs) == 16


def measure_seam(content: bytes) -> float:
    """The mean jump across opposite edges, relative to that between neighbouring rows and columns."""
    pixels = np.asarray(Image.open(BytesIO(content)).convert("RGB"), dtype=np.float64)
    both_directions = [pixels, pixels.transpose(1, 0, 2)]
    edge_difference = np.mean([np.abs(each[0] - each[-1]).mean() for each in both_directions])
    return float(edge_difference / np.mean([np.abs(np.diff(each, axis=0)).mean() for each in both_directions]))


@pytest.mark.slow
def test_the_edges_of_a_tile_fit_each_other(embedded: StableDiffusion, build_recipe: Make, job: Make) -> None:
    """The init image has very different opposite edges, and the strength keeps enough of it."""
    gradient = Image.linear_gradient("L")
    start, blobs = make_image_to_image(
        [encode_picture(Image.merge("RGB", (gradient, gradient.rotate(90), gradient)))], 0.6
    )
    seam_differences = {}
    for tiled_image in (False, True):
        one = job(build_recipe("green tree", steps=30, tile=tiled_image, start=start, count=2), ladder=False)
        seam_differences[tiled_image] = np.mean(
            [measure_seam(each) for each in run_locally(one, {"embedded": embedded}, blobs).pictures]
        )
    assert seam_differences[True] < 0.5 * seam_differences[False]
