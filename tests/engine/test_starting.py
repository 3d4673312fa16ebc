"""Images that begin with pictures or rungs, end early, tile, or lie between texts: in the engine's shared batch."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from engine.admit import admit
from engine.alone import develop
from engine.engine import Developed, Engine
from engine.families.stable_diffusion import StableDiffusion
from engine.job import Branch, Concept, Job, Ladder, decode, encode
from engine.lane import Lane
from engine.unfit import Unfit
from tests.engine.beginnings import Blobs, added, developed, forward, half_mask, ladder_of, saved, scene, stored

Make = Callable[..., Any]
SOON = 60.0


@pytest.fixture
def small(recipe: Make) -> Make:
    """A recipe of the embedded model whose batch shape is pinned, so that every bit is a function of it alone."""

    def make(text: str = "a red cat", **fields: Any) -> Any:
        known: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "bucket": 2}
        return recipe(text, **(known | fields))

    return make


def together(family: StableDiffusion, some: list[tuple[Job, Blobs]]) -> dict[tuple[str, int], torch.Tensor]:
    """All of them in one engine, each two steps after the one before."""
    engine, found = Engine({"embedded": family}), dict[tuple[str, int], torch.Tensor]()
    waiting = list(some)
    while waiting or not engine.idle:
        if waiting:
            added(engine, *waiting.pop(0), family)
        for event in (*engine.step(), *engine.step()):
            if isinstance(event, Developed):
                found[event.job, event.image] = event.latents
    return found


def test_in_the_shared_batch_it_is_the_same_as_alone(embedded: StableDiffusion, small: Make, job: Make) -> None:
    start, blobs = forward([saved(scene())], 0.6)
    masked, both = forward([saved(scene())], 0.8, saved(half_mask()))
    some = [
        (job(small(steps=9)), {}),
        (job(small(steps=9, start=start, sampler="dpmpp_2m")), blobs),
        (job(small(steps=8, start=masked, count=2)), both),
        (job(small(steps=7, tile=True, sampler="euler")), {}),
        (job(small(steps=9, until=0.5, sampler="ddim")), {}),
        (job(small(steps=6, mixed=True, concepts=(Concept("a dog"), Concept("a tree", 2.0)))), {}),
    ]
    found = together(embedded, some)
    for each, needed in some:
        for event in developed(each, needed, embedded):
            assert torch.equal(found[each.id, event.image], event.latents), each.task


def test_a_strength_of_the_least_is_one_step_and_stays_near_the_picture(
    embedded: StableDiffusion, small: Make, job: Make
) -> None:
    z = embedded.encode_image(scene())
    far = []
    for strength in (0.05, 0.5, 1.0):
        start, blobs = forward([saved(scene())], strength)
        [event] = developed(job(small(steps=10, start=start, sampler="ddim")), blobs, embedded)
        far.append(float((event.latents - z).square().mean()))
    assert far[0] < 0.1 * far[2]
    assert far[0] < far[1] < far[2]


def test_its_ladder_has_rungs_of_the_steps_that_are_run(affine: Any, recipe: Make, job: Make) -> None:
    start, blobs = forward([saved(scene())], 0.5)
    [event] = developed(job(recipe(steps=200, start=start, until=0.8)), blobs, affine)
    steps = [rung.step for rung in event.rungs]
    assert steps[0] == 101
    assert steps[-1] == 160
    assert 30 <= len(steps) <= 48
    kept = [rung for rung in event.rungs if rung.x is not None]
    assert len(kept) == len(steps) // 4


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "ddpm", "euler", "dpmpp_2m_sde"])
def test_an_unchanged_branch_is_the_straight_run_to_the_bit(
    embedded: StableDiffusion, small: Make, job: Make, sampler: str
) -> None:
    straight = job(small(steps=12, sampler=sampler))
    [whole] = developed(straight, {}, embedded)
    blobs = stored(ladder_of(whole, straight))
    for step in (4, 8):
        start = Branch(next(iter(blobs)), step)
        [again] = developed(job(small(steps=12, sampler=sampler, start=start)), blobs, embedded)
        assert torch.equal(again.latents, whole.latents)
        [other] = developed(job(small("a blue car", steps=12, sampler=sampler, start=start)), blobs, embedded)
        [fresh] = developed(
            job(small(steps=12, sampler=sampler, start=Branch(start.ladder, step, fresh=True), seed=8)), blobs, embedded
        )
        for changed in (other, fresh):
            assert float((changed.latents - whole.latents).abs().max()) > 0.01


def test_fresh_branches_of_one_rung_differ_from_each_other(embedded: StableDiffusion, small: Make, job: Make) -> None:
    """DDIM draws nothing on its way: without noise of their own they would be four times the same picture."""
    straight = job(small(steps=12, sampler="ddim"))
    [whole] = developed(straight, {}, embedded)
    blobs = stored(ladder_of(whole, straight))
    images = {}
    for fresh in (False, True):
        start = Branch(next(iter(blobs)), 4, fresh=fresh)
        images[fresh] = developed(job(small(steps=12, sampler="ddim", start=start, count=2)), blobs, embedded)
    assert torch.equal(images[False][0].latents, images[False][1].latents)
    assert float((images[True][0].latents - images[True][1].latents).abs().max()) > 0.01


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_a_ladder_of_an_earlier_version_is_good_for_what_it_kept(
    embedded: StableDiffusion, small: Make, job: Make, sampler: str
) -> None:
    """Version 4 kept no estimate where the sampler does not look back."""
    straight = job(small(steps=12, sampler=sampler))
    [whole] = developed(straight, {}, embedded)
    old = decode(ladder_of(whole, straight), Ladder)
    rungs = tuple(msgspec.structs.replace(rung, history=None) for rung in old.rungs)
    blobs = stored(encode(msgspec.structs.replace(old, rungs=rungs)))
    start = Branch(next(iter(blobs)), 4)
    one = job(small(steps=12, sampler=sampler, start=start))
    if sampler == "dpmpp_2m":
        with pytest.raises(Unfit, match="earlier version"):
            developed(one, blobs, embedded)
    else:
        assert torch.equal(developed(one, blobs, embedded)[0].latents, whole.latents)
    fresh = job(small(steps=12, sampler=sampler, start=Branch(start.ladder, 4, fresh=True)))
    with pytest.raises(Unfit, match="earlier version") as refused:
        developed(fresh, blobs, embedded)
    assert refused.value.blame == "member"


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("masked", [False, True])
def test_killed_and_resumed_it_is_the_same_picture(
    embedded: StableDiffusion, small: Make, job: Make, sampler: str, masked: bool
) -> None:
    start, blobs = forward([saved(scene())], 0.8, saved(half_mask()) if masked else None)
    one = job(small(steps=15, sampler=sampler, start=start, count=2))
    expected = developed(one, blobs, embedded)
    snapshots: list[Any] = []
    for steps in (3, 4, 2):
        engine = Engine({"embedded": embedded})
        added(engine, one, blobs, embedded, snapshots)
        for _ in range(steps):
            engine.step()
        snapshots = engine.snapshots(one.id, epoch=1)
    assert [snapshot.k for snapshot in snapshots] == [3 + 9, 3 + 9]
    for event, other in zip(developed(one, blobs, embedded, snapshots), expected, strict=True):
        assert torch.equal(event.latents, other.latents)
        assert [rung.step for rung in event.rungs] == [rung.step for rung in other.rungs]
        for mine, theirs in zip(event.rungs, other.rungs, strict=True):
            assert torch.equal(mine.x0, theirs.x0)
            assert (mine.x is None) == (theirs.x is None)


def test_a_snapshot_from_before_its_beginning_is_not_taken(embedded: StableDiffusion, small: Make, job: Make) -> None:
    start, blobs = forward([saved(scene())], 0.5)
    one = job(small(steps=10, start=start))
    engine = Engine({"embedded": embedded})
    added(engine, one, blobs, embedded)
    [snapshot] = engine.snapshots(one.id, epoch=1)
    early = msgspec.structs.replace(snapshot, k=2, x=b"\0" * len(snapshot.x))
    [begun] = developed(one, blobs, embedded, [early])
    assert torch.equal(begun.latents, developed(one, blobs, embedded)[0].latents)


def test_what_is_not_painted_stays(embedded: StableDiffusion, small: Make, job: Make) -> None:
    start, blobs = forward([saved(scene())], 1.0, saved(half_mask()))
    z = embedded.encode_image(scene())
    one = job(small(steps=8, start=start))
    engine, seen = Engine({"embedded": embedded}), []
    added(engine, one, blobs, embedded)
    engine.watch(one.id)
    while not engine.idle:
        for event in engine.step():
            latents = event.latents if isinstance(event, Developed) else getattr(event, "x0", None)
            assert latents is not None
            seen.append(latents)
    for latents in seen:
        assert torch.equal(latents[..., :4], z[..., :4])
    assert float((seen[-1][..., 4:] - z[..., 4:]).abs().max()) > 0.1


@pytest.mark.parametrize(("until", "last"), [(0.5, 10), (0.01, 1), (0.97, 19), (1.0, 20)])
def test_it_ends_where_it_shall_with_the_estimate_of_that_moment(
    embedded: StableDiffusion, small: Make, job: Make, until: float, last: int
) -> None:
    [whole] = developed(job(small(steps=20)), {}, embedded)
    one = job(small(steps=20, until=until))
    [event] = developed(one, {}, embedded)
    assert event.rungs[-1].step == last
    expected = whole.latents if last == 20 else next(rung.x0 for rung in whole.rungs if rung.step == last)
    assert torch.equal(event.latents, expected)


def test_one_text_mixed_with_itself_is_that_text_in_as_many_rows(
    embedded: StableDiffusion, small: Make, job: Make
) -> None:
    alone = job(small("a red cat", steps=6))
    twice = job(small(steps=6, mixed=True, concepts=(Concept("a red cat", 0.5), Concept("a red cat", 2.5))))
    [image], [other] = (admit(each, {"embedded": embedded}) for each in (alone, twice))
    assert image.rows == other.rows == 2
    torch.testing.assert_close(developed(alone, {}, embedded)[0].latents, developed(twice, {}, embedded)[0].latents)


def test_mixed_texts_lie_between_them(embedded: StableDiffusion, small: Make, job: Make) -> None:
    """By weight: the nearer, the more of it."""

    def latents(first: float, second: float) -> torch.Tensor:
        concepts = (Concept("red apple", first), Concept("blue car", second))
        [event] = developed(job(small(steps=8, mixed=True, sampler="ddim", concepts=concepts)), {}, embedded)
        return event.latents

    [apple] = developed(job(small("red apple", steps=8, sampler="ddim")), {}, embedded)
    far = [float((latents(1, share) - apple.latents).square().mean()) for share in (0.02, 0.5, 5.0)]
    assert far[0] < far[1] < far[2]


def test_mixed_conditions_are_the_weighted_mean(affine: Any, recipe: Make, job: Make) -> None:
    one = job(recipe(mixed=True, concepts=(Concept("sea", 1.0), Concept("fog", 3.0)), guidance=1.0))
    [image] = admit(one, {"affine": affine})
    sea, fog = (affine.condition(text, one.task)[0] for text in ("sea", "fog"))
    torch.testing.assert_close(image.asked.texts[0], (0.25 * sea + 0.75 * fog)[None])  # pyright: ignore


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
def test_what_cannot_begin_is_a_sentence(
    affine: Any, recipe: Make, job: Make, fields: dict[str, Any], why: str, blame: str
) -> None:
    with pytest.raises(Unfit, match=why) as refused:
        admit(job(recipe(steps=10, **fields)), {"affine": affine})
    assert refused.value.blame == blame


@pytest.mark.parametrize(
    "fields",
    [{"tile": True}, {"until": 0.5}, {"mixed": True}, {"start": Branch("a" * 64, 5)}],
    ids=["tile", "until", "mixed", "branch"],
)
def test_what_goes_whole_says_what_to_take_instead(
    embedded: StableDiffusion, small: Make, job: Make, fields: dict[str, Any]
) -> None:
    one = job(small(steps=10, sampler="unipc", **fields))
    lane = Lane({"embedded": embedded})
    try:
        if "start" in fields:
            with pytest.raises(Unfit, match="take the sampler ddim"):
                lane.begin(one, {}).result(SOON)
        with pytest.raises(Unfit, match="take the sampler ddim"):
            admit(one, {"embedded": embedded})
    finally:
        lane.close()


def test_a_network_that_looks_at_no_neighbours_draws_the_same_tile(affine: Any, recipe: Make, job: Make) -> None:
    """What is moved round before the network is moved back after it."""
    plain, tile = (developed(job(recipe(steps=10, tile=each)), {}, affine)[0] for each in (False, True))
    assert torch.equal(plain.latents, tile.latents)


def test_the_seam_of_a_tile_is_everywhere_in_turn(affine: Any, recipe: Make, job: Make) -> None:
    engine, one = Engine({"affine": affine}), job(recipe(steps=48, tile=True))
    engine.add(one)
    [image] = engine._images[one.id]
    seen = set[Any]()
    while not engine.idle:
        seen.add(getattr(image, "shift", None))
        engine.step()
    assert {down for down, _ in seen} == {right for _, right in seen} == set(range(4))
    assert len(seen) == 16


def seam(content: bytes) -> float:
    """The mean jump over the edges that shall fit each other, for one between neighbouring rows and columns."""
    pixels = np.asarray(Image.open(BytesIO(content)).convert("RGB"), dtype=np.float64)
    both = [pixels, pixels.transpose(1, 0, 2)]
    over = np.mean([np.abs(each[0] - each[-1]).mean() for each in both])
    return float(over / np.mean([np.abs(np.diff(each, axis=0)).mean() for each in both]))


def test_the_edges_of_a_tile_fit_each_other(embedded: StableDiffusion, small: Make, job: Make) -> None:
    """Begun with a picture whose edges are as different as can be, of which enough is left."""
    gradient = Image.linear_gradient("L")
    start, blobs = forward([saved(Image.merge("RGB", (gradient, gradient.rotate(90), gradient)))], 0.5)
    found = {}
    for tile in (False, True):
        one = job(small("green tree", steps=30, tile=tile, start=start, count=2), ladder=False)
        found[tile] = np.mean([seam(each) for each in develop(one, {"embedded": embedded}, blobs).pictures])
    assert found[True] < 0.5 * found[False]
