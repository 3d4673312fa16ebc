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

from engine.contract import Branch, Concept, Job, Ladder, decode, encode
from engine.contract.rejection import JobRejected
from engine.core.engine import Engine, LatentsDone
from engine.core.job_images import build_images
from engine.models.families.stable_diffusion import StableDiffusion
from engine.output.decode_worker import DecodeWorker
from engine.worker.local_run import run_locally
from shared.init_image_jobs import (
    Blobs,
    added,
    developed,
    forward,
    half_mask,
    ladder_of,
    saved,
    scene,
    stored,
)

Make = Callable[..., Any]
TIMEOUT = 60.0


@pytest.fixture
def build_recipe(recipe: Make) -> Make:
    """Builds a recipe of the embedded model with a pinned batch shape, so that it alone decides every bit."""

    def make(text: str = "a red cat", **fields: Any) -> Any:
        defaults: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "bucket": 2}
        return recipe(text, **(defaults | fields))

    return make


def run_together(family: StableDiffusion, jobs: list[tuple[Job, Blobs]]) -> dict[tuple[str, int], torch.Tensor]:
    """Runs all jobs in one engine, each added two steps after the one before."""
    engine, latents_by_image = Engine({"embedded": family}), dict[tuple[str, int], torch.Tensor]()
    waiting = list(jobs)
    while waiting or not engine.is_idle:
        if waiting:
            added(engine, *waiting.pop(0), family)
        for event in (*engine.step(), *engine.step()):
            if isinstance(event, LatentsDone):
                latents_by_image[event.job, event.image] = event.latents
    return latents_by_image


@pytest.mark.slow
def test_all_kinds_of_jobs_in_one_batch_draw_the_same_as_alone(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    start, blobs = forward([saved(scene())], 0.6)
    masked, both = forward([saved(scene())], 0.8, saved(half_mask()))
    jobs = [
        (job(build_recipe(steps=9)), {}),
        (job(build_recipe(steps=9, start=start, sampler="dpmpp_2m")), blobs),
        (job(build_recipe(steps=8, start=masked, count=2)), both),
        (job(build_recipe(steps=7, tile=True, sampler="euler")), {}),
        (job(build_recipe(steps=9, until=0.5, sampler="ddim")), {}),
        (job(build_recipe(steps=6, mixed=True, concepts=(Concept("a dog"), Concept("a tree", 2.0)))), {}),
    ]
    together = run_together(embedded, jobs)
    for each, needed in jobs:
        for event in developed(each, needed, embedded):
            assert torch.equal(together[each.id, event.image], event.latents), each.task


def test_a_lower_strength_stays_nearer_to_the_init_image(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    z = embedded.encode_image(scene())
    distances = []
    for strength in (0.05, 0.5, 1.0):
        start, blobs = forward([saved(scene())], strength)
        [event] = developed(job(build_recipe(steps=10, start=start, sampler="ddim")), blobs, embedded)
        distances.append(float((event.latents - z).square().mean()))
    assert distances[0] < 0.1 * distances[2]
    assert distances[0] < distances[1] < distances[2]


def test_a_ladder_covers_only_the_steps_that_run(affine: Any, recipe: Make, job: Make) -> None:
    start, blobs = forward([saved(scene())], 0.5)
    [event] = developed(job(recipe(steps=200, start=start, until=0.8)), blobs, affine)
    steps = [rung.step for rung in event.keyframes]
    assert steps[0] == 101
    assert steps[-1] == 160
    assert 30 <= len(steps) <= 48
    with_latents = [rung for rung in event.keyframes if rung.latents is not None]
    assert len(with_latents) == len(steps) // 4


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ddpm", "euler", "dpmpp_2m_sde"])
def test_an_unchanged_branch_equals_the_original_bit_for_bit(
    embedded: StableDiffusion, build_recipe: Make, job: Make, sampler: str
) -> None:
    straight = job(build_recipe(steps=12, sampler=sampler))
    [original] = developed(straight, {}, embedded)
    blobs = stored(ladder_of(original, straight))
    for step in (4, 8):
        start = Branch(next(iter(blobs)), step)
        [again] = developed(job(build_recipe(steps=12, sampler=sampler, start=start)), blobs, embedded)
        assert torch.equal(again.latents, original.latents)
        [other] = developed(job(build_recipe("a blue car", steps=12, sampler=sampler, start=start)), blobs, embedded)
        [fresh] = developed(
            job(build_recipe(steps=12, sampler=sampler, start=Branch(start.ladder, step, fresh=True), seed=8)),
            blobs,
            embedded,
        )
        for changed in (other, fresh):
            assert float((changed.latents - original.latents).abs().max()) > 0.01


@pytest.mark.slow
def test_fresh_branches_of_one_keyframe_differ_from_each_other(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    """DDIM draws no noise on its way: without fresh noise all branches would be the same picture."""
    straight = job(build_recipe(steps=12, sampler="ddim"))
    [original] = developed(straight, {}, embedded)
    blobs = stored(ladder_of(original, straight))
    images = {}
    for fresh in (False, True):
        start = Branch(next(iter(blobs)), 4, fresh=fresh)
        images[fresh] = developed(job(build_recipe(steps=12, sampler="ddim", start=start, count=2)), blobs, embedded)
    assert torch.equal(images[False][0].latents, images[False][1].latents)
    assert float((images[True][0].latents - images[True][1].latents).abs().max()) > 0.01


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_a_ladder_of_an_earlier_version_works_as_far_as_its_data_goes(
    embedded: StableDiffusion, build_recipe: Make, job: Make, sampler: str
) -> None:
    """Version 4 stored no x0 for samplers without history."""
    straight = job(build_recipe(steps=12, sampler=sampler))
    [original] = developed(straight, {}, embedded)
    old = decode(ladder_of(original, straight), Ladder)
    rungs = tuple(msgspec.structs.replace(rung, history=None) for rung in old.rungs)
    blobs = stored(encode(msgspec.structs.replace(old, rungs=rungs)))
    start = Branch(next(iter(blobs)), 4)
    one = job(build_recipe(steps=12, sampler=sampler, start=start))
    if sampler == "dpmpp_2m":
        with pytest.raises(JobRejected, match="earlier version"):
            developed(one, blobs, embedded)
    else:
        assert torch.equal(developed(one, blobs, embedded)[0].latents, original.latents)
    fresh = job(build_recipe(steps=12, sampler=sampler, start=Branch(start.ladder, 4, fresh=True)))
    with pytest.raises(JobRejected, match="earlier version") as refused:
        developed(fresh, blobs, embedded)
    assert refused.value.blame == "member"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_resumed_job_with_an_init_image_draws_the_same_picture(
    embedded: StableDiffusion, build_recipe: Make, job: Make, sampler: str, masked: bool
) -> None:
    start, blobs = forward([saved(scene())], 0.8, saved(half_mask()) if masked else None)
    one = job(build_recipe(steps=15, sampler=sampler, start=start, count=2))
    expected = developed(one, blobs, embedded)
    snapshots: list[Any] = []
    for steps in (3, 4, 2):
        engine = Engine({"embedded": embedded})
        added(engine, one, blobs, embedded, snapshots)
        for _ in range(steps):
            engine.step()
        snapshots = engine.take_snapshots(one.id, epoch=1)
    assert [snapshot.k for snapshot in snapshots] == [3 + 9, 3 + 9]
    for event, other in zip(developed(one, blobs, embedded, snapshots), expected, strict=True):
        assert torch.equal(event.latents, other.latents)
        assert [rung.step for rung in event.keyframes] == [rung.step for rung in other.keyframes]
        for mine, theirs in zip(event.keyframes, other.keyframes, strict=True):
            assert torch.equal(mine.x0, theirs.x0)
            assert (mine.latents is None) == (theirs.latents is None)


def test_a_snapshot_from_before_the_first_step_is_ignored(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    start, blobs = forward([saved(scene())], 0.5)
    one = job(build_recipe(steps=10, start=start))
    engine = Engine({"embedded": embedded})
    added(engine, one, blobs, embedded)
    [snapshot] = engine.take_snapshots(one.id, epoch=1)
    early = msgspec.structs.replace(snapshot, k=2, x=b"\0" * len(snapshot.x))
    [event] = developed(one, blobs, embedded, [early])
    assert torch.equal(event.latents, developed(one, blobs, embedded)[0].latents)


def test_latents_outside_the_mask_stay_unchanged(embedded: StableDiffusion, build_recipe: Make, job: Make) -> None:
    start, blobs = forward([saved(scene())], 1.0, saved(half_mask()))
    z = embedded.encode_image(scene())
    one = job(build_recipe(steps=8, start=start))
    engine, all_latents = Engine({"embedded": embedded}), []
    added(engine, one, blobs, embedded)
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
@pytest.mark.parametrize(("until", "last"), [(0.5, 10), (0.01, 1), (0.97, 19), (1.0, 20)])
def test_an_early_end_returns_the_x0_of_that_step(
    embedded: StableDiffusion, build_recipe: Make, job: Make, until: float, last: int
) -> None:
    [original] = developed(job(build_recipe(steps=20)), {}, embedded)
    one = job(build_recipe(steps=20, until=until))
    [event] = developed(one, {}, embedded)
    assert event.keyframes[-1].step == last
    expected = original.latents if last == 20 else next(rung.x0 for rung in original.keyframes if rung.step == last)
    assert torch.equal(event.latents, expected)


def test_a_text_mixed_with_itself_equals_the_text_in_as_many_rows(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    alone = job(build_recipe("a red cat", steps=6))
    twice = job(build_recipe(steps=6, mixed=True, concepts=(Concept("a red cat", 0.5), Concept("a red cat", 2.5))))
    [image], [other] = (build_images(each, {"embedded": embedded}) for each in (alone, twice))
    assert image.rows == other.rows == 2
    torch.testing.assert_close(developed(alone, {}, embedded)[0].latents, developed(twice, {}, embedded)[0].latents)


@pytest.mark.slow
def test_mixed_texts_draw_latents_between_those_of_each_text(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    """The larger the weight of a text, the nearer the latents are to it."""

    def latents(first: float, second: float) -> torch.Tensor:
        concepts = (Concept("red apple", first), Concept("blue car", second))
        [event] = developed(job(build_recipe(steps=8, mixed=True, sampler="ddim", concepts=concepts)), {}, embedded)
        return event.latents

    [apple] = developed(job(build_recipe("red apple", steps=8, sampler="ddim")), {}, embedded)
    distances = [float((latents(1, share) - apple.latents).square().mean()) for share in (0.02, 0.5, 5.0)]
    assert distances[0] < distances[1] < distances[2]


def test_mixed_conditions_are_the_weighted_mean(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe(mixed=True, concepts=(Concept("sea", 1.0), Concept("fog", 3.0)), guidance=1.0))
    [image] = build_images(one, {"affine": affine})
    sea, fog = (affine.encode_conditioning(text, one.task)[0] for text in ("sea", "fog"))
    torch.testing.assert_close(image.model_inputs.conditioning[0], (0.25 * sea + 0.75 * fog)[None])  # pyright: ignore


@pytest.mark.parametrize(
    ("fields", "why", "blame"),
    [
        ({"mixed": True, "concepts": (Concept("sea"), Concept("fog", -1.0))}, "needs a weight above 0", "member"),
        ({"mixed": True, "concepts": (Concept("sea"), Concept("fog", 0.0))}, "needs a weight above 0", "member"),
        ({"start": Branch("a" * 64, 6), "until": 0.5}, "but begin after step", "member"),
        ({"start": Branch("a" * 64, 10)}, "but begin after step", "member"),
        ({"start": Branch("a" * 64, 5)}, "did not reach the engine", "us"),
    ],
)
def test_a_job_that_cannot_start_is_refused_in_one_sentence(
    affine: Any, recipe: Make, job: Make, fields: dict[str, Any], why: str, blame: str
) -> None:
    with pytest.raises(JobRejected, match=why) as refused:
        build_images(job(recipe(steps=10, **fields)), {"affine": affine})
    assert refused.value.blame == blame


@pytest.mark.parametrize(
    "fields",
    [{"tile": True}, {"until": 0.5}, {"mixed": True}, {"start": Branch("a" * 64, 5)}],
    ids=["tile", "until", "mixed", "branch"],
)
def test_options_that_whole_pipelines_lack_name_a_sampler_to_use(
    embedded: StableDiffusion, build_recipe: Make, job: Make, fields: dict[str, Any]
) -> None:
    one = job(build_recipe(steps=10, sampler="unipc", **fields))
    lane = DecodeWorker({"embedded": embedded})
    try:
        if "start" in fields:
            with pytest.raises(JobRejected, match="take the sampler ddim"):
                lane.encode_init_images(one, {}).result(TIMEOUT)
        with pytest.raises(JobRejected, match="take the sampler ddim"):
            build_images(one, {"embedded": embedded})
    finally:
        lane.close()


def test_a_network_without_neighbourhood_draws_the_same_with_tiling(affine: Any, recipe: Make, job: Make) -> None:
    """The shift before the network is undone after it."""
    plain, tile = (developed(job(recipe(steps=10, tile=each)), {}, affine)[0] for each in (False, True))
    assert torch.equal(plain.latents, tile.latents)


def test_tiling_shifts_the_seam_through_every_position(affine: Any, recipe: Make, job: Make) -> None:
    engine, one = Engine({"affine": affine}), job(recipe(steps=48, tile=True))
    engine.add(one)
    [image] = engine._images[one.id]
    shifts = set[Any]()
    while not engine.is_idle:
        shifts.add(getattr(image, "shift", None))
        engine.step()
    assert {down for down, _ in shifts} == {right for _, right in shifts} == set(range(4))
    assert len(shifts) == 16


def measure_seam(content: bytes) -> float:
    """The mean jump across opposite edges, relative to that between neighbouring rows and columns."""
    pixels = np.asarray(Image.open(BytesIO(content)).convert("RGB"), dtype=np.float64)
    both = [pixels, pixels.transpose(1, 0, 2)]
    over = np.mean([np.abs(each[0] - each[-1]).mean() for each in both])
    return float(over / np.mean([np.abs(np.diff(each, axis=0)).mean() for each in both]))


@pytest.mark.slow
def test_the_edges_of_a_tile_fit_each_other(embedded: StableDiffusion, build_recipe: Make, job: Make) -> None:
    """The init image has very different opposite edges, and the strength keeps enough of it."""
    gradient = Image.linear_gradient("L")
    start, blobs = forward([saved(Image.merge("RGB", (gradient, gradient.rotate(90), gradient)))], 0.5)
    seams = {}
    for tile in (False, True):
        one = job(build_recipe("green tree", steps=30, tile=tile, start=start, count=2), ladder=False)
        seams[tile] = np.mean([measure_seam(each) for each in run_locally(one, {"embedded": embedded}, blobs).pictures])
    assert seams[True] < 0.5 * seams[False]
