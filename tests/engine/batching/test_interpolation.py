"""Interpolation between prompts or seeds: the ends are the plain pictures, the frames between mix them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch

from engine.batching.job_images import build_images
from engine.contract import (
    Concept,
    Interpolation,
    JobRejected,
    NoiseAncestor,
    Recipe,
    count_rows,
    decode,
    encode,
    noise_seed,
    recipe_for_image,
)
from engine.models.families.stable_diffusion import StableDiffusion
from engine.picture_files import format_parameters
from shared.init_image_jobs import run_job

Make = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_an_interpolation_has_plain_pictures_at_its_ends_and_a_mixed_middle(
    embedded: StableDiffusion, build_recipe: Make, job: Make, sampler: str
) -> None:
    common_fields = {"steps": 6, "sampler": sampler, "seed": 9}
    frames = run_job(
        job(build_recipe("cat", count=3, interpolation=Interpolation("dog", 0, 3), **common_fields)), {}, embedded
    )
    half = (Concept("cat", 0.5), Concept("dog", 0.5))
    plain_jobs = [
        build_recipe("cat", **common_fields),
        build_recipe(concepts=half, mixed=True, **common_fields),
        build_recipe("dog", **common_fields),
    ]
    for frame, one in zip(frames, plain_jobs, strict=True):
        [lone_image] = run_job(job(one), {}, embedded)
        assert torch.equal(frame.latents, lone_image.latents)
    assert float((frames[0].latents - frames[2].latents).abs().max()) > 0.1


def test_several_jobs_form_one_interpolation(recipe: Make) -> None:
    parts = [
        recipe("cat", count=count, interpolation=Interpolation("dog", first, 10))
        for first, count in ((0, 4), (4, 4), (8, 2))
    ]
    images = [recipe_for_image(part, image) for part in parts for image in range(part.count)]
    assert images[0].concepts == (Concept("cat"),)
    assert images[-1].concepts == (Concept("dog"),)
    assert [image.mixed for image in images] == [False, *[True] * 8, False]
    shares = [sum(one.weight for one in image.concepts if one.text == "dog") for image in images]
    assert shares == pytest.approx([index / 9 for index in range(10)])
    assert all(sum(one.weight for one in image.concepts) == pytest.approx(1.0) for image in images)
    assert {noise_seed(part, image) for part in parts for image in range(part.count)} == {parts[0].seed}
    assert [count_rows(part) for part in parts] == [count_rows(recipe("cat", count=part.count)) for part in parts]
    assert all(
        recipe_for_image(image, index % 4) == image for index, image in enumerate(images[:4])
    )  # it is idempotent


def test_an_interpolation_between_seeds_passes_through_every_seed(recipe: Make) -> None:
    grid = recipe("cat", count=4, seed=7)
    for seeds in ((7, 8), (7, 8, 9), (7, 8, 9, 10)):
        parts = [
            msgspec.structs.replace(grid, interpolation=Interpolation(None, first, 13, seeds), count=count)
            for first, count in ((0, 4), (4, 4), (8, 4), (12, 1))
        ]
        images = [recipe_for_image(part, image) for part in parts for image in range(part.count)]
        assert [image.seed for image in images if not image.lineage] == list(seeds)
        leg_count = len(seeds) - 1
        for index, image in enumerate(images):
            leg_index, share = divmod(index * leg_count / 12, 1)
            if image.lineage:
                (left,) = image.lineage
                assert (left.seed, left.index, left.strength) == (seeds[int(leg_index)], 0, pytest.approx(share))
                assert image.seed == seeds[int(leg_index) + 1]
            assert recipe_for_image(image, index % 4) == image
            assert noise_seed(image, index % 4) == image.seed
            assert image.concepts == grid.concepts


@pytest.mark.slow
def test_an_interpolation_between_seeds_contains_the_grids_pictures(
    embedded: StableDiffusion, build_recipe: Make, job: Make
) -> None:
    grid = run_job(job(build_recipe("cat", steps=4, seed=7, count=2)), {}, embedded)
    frames = run_job(
        job(build_recipe("cat", steps=4, seed=7, count=3, interpolation=Interpolation(None, 0, 3, (7, 8)))),
        {},
        embedded,
    )
    assert torch.equal(frames[0].latents, grid[0].latents)
    assert torch.equal(frames[2].latents, grid[1].latents)
    half = build_recipe("cat", steps=4, seed=8, lineage=(NoiseAncestor(7, 0, 0.5),))
    [middle_image] = run_job(job(half), {}, embedded)
    assert torch.equal(frames[1].latents, middle_image.latents)


def test_an_interpolation_has_its_recipe_and_parameters_per_picture() -> None:
    known_fields: dict[str, Any] = {"sampler": "ddim", "steps": 9, "guidance": 3.0, "width": 64, "height": 64}
    one = Recipe(
        concepts=(Concept("cat"),),
        model="m",
        seed=5,
        dtype="float32",
        interpolation=Interpolation("dog", 4, 9),
        **known_fields,
    )
    assert decode(encode(one), Recipe) == one
    texts = [format_parameters(one, image, "r1") for image in range(4)]
    assert [each.splitlines()[0] for each in texts] == [
        "cat::0.5 dog::0.5",
        "cat::0.375 dog::0.625",
        "cat::0.25 dog::0.75",
        "cat::0.125 dog::0.875",
    ]
    assert all("Seed: 5," in each and "Mixed: True" in each for each in texts)
    assert "Mixed" not in format_parameters(
        msgspec.structs.replace(one, interpolation=Interpolation("dog", 8, 9)), 0, "r1"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"concepts": (Concept("a"), Concept("b"))},
        {"count": 3, "interpolation": Interpolation("dog", 8, 10)},
        {"interpolation": Interpolation(None, 0, 9, (1, 2)), "lineage": (NoiseAncestor(3, 0, 0.5),)},
    ],
    ids=["two", "beyond", "varied"],
)
def test_an_invalid_interpolation_is_refused(affine: Any, recipe: Make, job: Make, fields: dict[str, Any]) -> None:
    with pytest.raises(JobRejected, match="A walk"):
        build_images(job(recipe(**{"interpolation": Interpolation("dog", 0, 10), **fields})), {"affine": affine})


def test_whole_pipelines_refuse_interpolation(embedded: StableDiffusion, build_recipe: Make, job: Make) -> None:
    with pytest.raises(JobRejected, match="supports no tiles, mixed prompts or walks"):
        build_images(
            job(build_recipe(steps=10, sampler="unipc", interpolation=Interpolation("dog", 0, 4))),
            {"embedded": embedded},
        )
