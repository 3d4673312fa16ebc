"""The oracle is the unmodified `StableDiffusionPipeline` in float32 with the same weights, seeds and scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from benchmarks.report.measures import psnr
from engine.batching.engine import Engine
from engine.contract import Concept, Recipe
from engine.models import load_folder
from engine.models.families.embedded import build_pipeline
from engine.models.families.stable_diffusion import StableDiffusion
from engine.sampling import build_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.7), ("euler", 0.0), ("dpmpp_2m", 0.0)]


@pytest.fixture(scope="module")
def embedded_pipeline() -> Any:
    return build_pipeline()


@pytest.fixture(scope="module")
def small_family(small_folder: Path) -> StableDiffusion:
    family = load_folder(str(small_folder), "small")
    assert isinstance(family, StableDiffusion)
    return family


@pytest.fixture(scope="module")
def small_pipeline(small_folder: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(small_folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_diffusers(pipeline: Any, family: StableDiffusion, recipe: Recipe, output: str) -> Any:
    pipeline.scheduler = build_scheduler(family.scheduler_config, recipe.sampler)
    torch_generators = [torch.Generator().manual_seed(recipe.seed + image) for image in range(recipe.count)]
    return pipeline(
        recipe.concepts[0].text,
        negative_prompt=recipe.negative or None,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance,
        eta=recipe.eta,
        num_images_per_prompt=recipe.count,
        width=recipe.width,
        height=recipe.height,
        generator=torch_generators,
        output_type=output,
    ).images


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_the_embedded_model_draws_the_pipelines_latents_in_the_same_batch_shape(
    embedded: StableDiffusion, embedded_pipeline: Any, recipe: Make, job: Make, finish: Make, sampler: str, eta: float
) -> None:
    one = recipe(
        model="embedded", sampler=sampler, eta=eta, guidance=3.5, count=2, width=64, height=64, negative="blue"
    )
    engine = Engine({"embedded": embedded})
    each = job(one)
    engine.add(each)
    latents = finish(engine)
    for image, expected in enumerate(by_diffusers(embedded_pipeline, embedded, one, "latent")):
        assert float((latents[each.id, image] - expected).abs().max()) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_the_embedded_model_draws_the_pipelines_picture_beside_other_jobs(
    embedded: StableDiffusion, embedded_pipeline: Any, recipe: Make, job: Make, finish: Make, sampler: str, eta: float
) -> None:
    one = recipe(model="embedded", sampler=sampler, eta=eta, guidance=3.5, width=64, height=64, steps=8)
    other_job = recipe("a tree", model="embedded", sampler="ddpm", guidance=1.0, width=64, height=64, steps=5, count=3)
    engine = Engine({"embedded": embedded})
    each = job(one)
    engine.add(each)
    engine.step()
    engine.add(job(other_job))
    picture = embedded.decode(finish(engine)[each.id, 0])
    assert psnr(picture, by_diffusers(embedded_pipeline, embedded, one, "pil")[0]) >= 60


def test_without_guidance_the_latents_equal_the_pipelines(
    embedded: StableDiffusion, embedded_pipeline: Any, recipe: Make, job: Make, finish: Make
) -> None:
    one = recipe(model="embedded", sampler="ddim", guidance=1.0, width=64, height=64, steps=5)
    engine = Engine({"embedded": embedded})
    each = job(one)
    engine.add(each)
    expected = by_diffusers(embedded_pipeline, embedded, one, "latent")[0]
    assert float((finish(engine)[each.id, 0] - expected).abs().max()) <= 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_a_stable_diffusion_folder_draws_the_pipelines_latents_and_pictures(
    small_family: StableDiffusion,
    small_pipeline: Any,
    recipe: Make,
    job: Make,
    finish: Make,
    sampler: str,
    eta: float,
    size: tuple[int, int],
) -> None:
    """CLIP, epsilon prediction, leading spacing, a PNDM configuration, and unequal sides."""
    one = recipe(model="small", sampler=sampler, eta=eta, guidance=7.5, count=2, width=size[0], height=size[1])
    engine = Engine({"small": small_family})
    each = job(one)
    engine.add(each)
    latents = finish(engine)
    pictures = by_diffusers(small_pipeline, small_family, one, "pil")
    for image, expected in enumerate(by_diffusers(small_pipeline, small_family, one, "latent")):
        scale = max(1.0, float(expected.abs().max()))
        assert float((latents[each.id, image] - expected).abs().max()) <= 1e-4 * scale
        assert psnr(small_family.decode(latents[each.id, image]), pictures[image]) >= 60


def test_weighted_concepts_are_composed(embedded: StableDiffusion, recipe: Make, job: Make, finish: Make) -> None:
    """A text twice with weights that sum to one equals the text once; a negative weight changes the latents."""
    fields = {"model": "embedded", "sampler": "ddim", "guidance": 3.0, "width": 64, "height": 64, "steps": 6}
    engine = Engine({"embedded": embedded})
    whole_concept, two_halves, with_negative = (
        job(recipe(concepts=concepts, **fields))
        for concepts in (
            (Concept("a red cat"),),
            (Concept("a red cat", 0.25), Concept("a red cat", 0.75)),
            (Concept("a red cat"), Concept("red", -0.5)),
        )
    )
    for each in (whole_concept, two_halves, with_negative):
        engine.add(each)
    latents = finish(engine)
    torch.testing.assert_close(latents[whole_concept.id, 0], latents[two_halves.id, 0], rtol=1e-4, atol=1e-4)
    assert float((latents[whole_concept.id, 0] - latents[with_negative.id, 0]).abs().max()) > 0.1
