"""Going on from a rung with more or fewer steps for what is left, and from where a picture was stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.admit import admit
from engine.engine import Developed
from engine.families.stable_diffusion import StableDiffusion
from engine.job import Branch, Ladder, Rung, encode, onto
from engine.noise import Noise
from engine.plan import COLUMNS
from engine.trajectory import Trajectory
from engine.unfit import Unfit
from tests.engine.beginnings import Blobs, begun, developed, forward, ladder_of, raw, saved, scene, stored

Make = Callable[..., Any]
SAMPLERS = ["ddim", "ddpm", "euler", "dpmpp_2m_karras"]


@pytest.fixture
def small(recipe: Make) -> Make:
    def make(text: str = "a red cat", **fields: Any) -> Any:
        known: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "bucket": 2}
        return recipe(text, **(known | fields))

    return make


@pytest.fixture
def straight(embedded: StableDiffusion, small: Make, job: Make) -> Callable[..., tuple[Developed, Blobs]]:
    """A whole picture, and its ladder as blobs."""

    def make(**fields: Any) -> tuple[Developed, Blobs]:
        one = job(small(**fields))
        [whole] = developed(one, {}, embedded)
        return whole, stored(ladder_of(whole, one))

    return make


def branch(blobs: Blobs, rung: int, of: int, steps: int, **fields: Any) -> Branch:
    return Branch(next(iter(blobs)), onto(rung, of, steps), rung=rung, **fields)


def a_ladder(family: StableDiffusion, history: bytes | None) -> Blobs:
    """Of eight steps, with one rung after the fourth."""
    shape = tuple(family.latent_shape(64, 64))
    rungs = (Rung(4, b"", raw(torch.ones(shape)), history),)
    return stored(encode(Ladder(job="01J00000000000000000000000", image=0, of=8, shape=shape, rungs=rungs)))


def moved(one: torch.Tensor, other: torch.Tensor) -> float:
    """The distance, as a share of the other's size."""
    return float((one - other).norm() / other.norm())


def test_a_rung_comes_at_the_same_share_of_the_steps_or_just_after() -> None:
    assert [onto(400, 1000, steps) for steps in (1000, 500, 50, 30, 3)] == [400, 200, 20, 12, 2]
    assert [onto(16, 48, steps) for steps in (96, 100, 1000)] == [32, 34, 334]
    assert onto(996, 1000, 50) == 50  # none is left


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_double_the_steps_the_next_estimate_is_that_of_the_straight_run(
    embedded: StableDiffusion, small: Make, job: Make, straight: Make, sampler: str
) -> None:
    whole, blobs = straight(steps=24, sampler=sampler, until=13 / 24)
    start = branch(blobs, 12, 24, 48)
    [more] = developed(job(small(steps=48, sampler=sampler, start=start, until=25 / 48)), blobs, embedded)
    before, after = ({rung.step: rung.x0 for rung in one.rungs} for one in (whole, more))
    assert list(after) == [25]
    assert moved(after[25], before[13]) < 0.02
    assert moved(after[25], before[13]) < moved(before[12], before[13])


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 50), ("dpmpp_2m", 7)])
def test_what_draws_no_noise_ends_near_the_straight_run(
    embedded: StableDiffusion, small: Make, job: Make, straight: Make, sampler: str, steps: int
) -> None:
    whole, blobs = straight(steps=24, sampler=sampler)
    start = branch(blobs, 16, 24, steps)
    [other] = developed(job(small(steps=steps, sampler=sampler, start=start)), blobs, embedded)
    assert 0.0 < moved(other.latents, whole.latents) < 0.1


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_what_was_stopped_goes_on_to_its_end_to_the_bit(
    embedded: StableDiffusion, small: Make, job: Make, straight: Make, sampler: str
) -> None:
    """Its last rung keeps the latents, whatever its number."""
    whole, _ = straight(steps=9, sampler=sampler)
    _, blobs = straight(steps=9, sampler=sampler, until=0.6)
    start = Branch(next(iter(blobs)), 5)
    [on] = developed(job(small(steps=9, sampler=sampler, start=start)), blobs, embedded)
    assert torch.equal(on.latents, whole.latents)


def test_a_branch_of_what_began_otherwise_draws_the_noise_that_was_to_come(
    embedded: StableDiffusion, small: Make, job: Make, straight: Make
) -> None:
    """Of a picture that began with a picture, and of one that went on with other steps."""
    picture, blobs = forward([saved(scene())], 0.9)
    _, ladder = straight(steps=8)
    more = branch(ladder, 4, 8, 10)
    for begins, needed in ((picture, blobs), (more, ladder)):
        one = job(small(steps=10, start=begins))
        [whole] = developed(one, needed, embedded)
        kept = [rung.step for rung in whole.rungs if rung.x is not None]
        again = stored(ladder_of(whole, one))
        [same] = developed(job(small(steps=10, start=Branch(next(iter(again)), kept[0]))), again, embedded)
        assert torch.equal(same.latents, whole.latents)


def test_noise_that_is_in_the_latents_is_not_drawn_once_more(
    embedded: StableDiffusion, small: Make, job: Make, straight: Make
) -> None:
    _, blobs = straight(steps=12)
    one = job(small(steps=4, start=branch(blobs, 8, 12, 4)))
    [image] = admit(one, {"embedded": embedded}, beginning=begun(one, blobs, embedded))
    assert isinstance(image, Trajectory)
    straight_on = Noise(one.task, 0, tuple(embedded.latent_shape(64, 64)))
    plan = embedded.plan("ddpm", 12, 0.0, 64, 64)
    assert torch.equal(image.noise.at(3, image.plan), straight_on.at(8, plan))


def test_a_multistep_sampler_forgets_a_step_of_another_size(
    embedded: StableDiffusion, small: Make, job: Make, straight: Make
) -> None:
    _, blobs = straight(steps=8, sampler="dpmpp_2m", until=0.5)
    for steps, remembers in ((8, True), (16, False)):
        start = Branch(next(iter(blobs)), 4) if steps == 8 else branch(blobs, 4, 8, steps)
        one = job(small(steps=steps, sampler="dpmpp_2m", start=start))
        [image] = admit(one, {"embedded": embedded}, beginning=begun(one, blobs, embedded))
        assert isinstance(image, Trajectory)
        m = COLUMNS.index("M")
        assert bool(image.plan.table[start.step, m]) is remembers
        assert image.plan.table[start.step + 1, m] != 0.0


@pytest.mark.parametrize(
    ("step", "rung", "steps"), [(9, 4, 16), (8, 4, 8), (4, 8, 8), (4, None, 16), (8, 8, 16)], ids=str
)  # fmt: skip
def test_a_branch_that_does_not_stand_where_its_rung_does_is_refused(
    embedded: StableDiffusion, small: Make, job: Make, step: int, rung: int | None, steps: int
) -> None:
    blobs = a_ladder(embedded, raw(torch.ones(embedded.latent_shape(64, 64))))
    start = Branch(next(iter(blobs)), step, rung=rung)
    with pytest.raises(Unfit, match="another number of steps"):
        begun(job(small(steps=steps, start=start)), blobs, embedded)


def test_without_an_estimate_no_other_steps(embedded: StableDiffusion, small: Make, job: Make) -> None:
    blobs = a_ladder(embedded, None)
    one = job(small(steps=16, start=branch(blobs, 4, 8, 16)))
    with pytest.raises(Unfit, match="earlier version"):
        admit(one, {"embedded": embedded}, beginning=begun(one, blobs, embedded))
