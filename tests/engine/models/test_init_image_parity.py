"""Init images against diffusers' unmodified image-to-image and inpainting pipelines in float32.

The pipelines accept latents only with four channels. So the pipelines of a Stable Diffusion folder get latents. The
embedded model's latents have sixteen channels; its pipeline gets the picture, and its autoencoder returns the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline

from engine.contract import ImageToImage, Recipe
from engine.models import load_folder
from engine.models.families.embedded import build_pipeline
from engine.models.families.stable_diffusion import StableDiffusion
from engine.sampling import build_scheduler
from shared.init_image_jobs import Blobs, draw_half_mask, draw_scene, load_init, make_image_to_image, run_job
from shared.picture_files import encode_picture

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor:FutureWarning"),
]

Make = Callable[..., Any]
SAMPLERS = [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0), ("euler", 0.0), ("dpmpp_2m", 0.0), ("euler_ancestral", 0.0)]
SMALL_SIDE = 32  # pixels: at 64, attention alone would take most of the time
STRENGTHS = [0.3, 0.6, 1.0]
# the small model has each sampler with each strength; these have each of them
EMBEDDED_CASES = [("ddim", 0.3), ("ddim", 1.0), ("ddpm", 0.6), ("euler", 0.3), ("dpmpp_2m", 0.6)]
UNCHECKED: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}


@pytest.fixture(scope="module")
def small(small_folder: Path) -> StableDiffusion:
    family = load_folder(str(small_folder), "small")
    assert isinstance(family, StableDiffusion)
    return family


@pytest.fixture(scope="module")
def parts(small_folder: Path) -> dict[str, Any]:
    """Loads the parts of the folder's pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(small_folder, safety_checker=None, requires_safety_checker=False)
    return pipeline.components | UNCHECKED


class MeanAutoencoder(AutoencoderKL):
    """An autoencoder that encodes a picture to the mean and so draws no noise."""

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        posterior: Any = super().encode(x)
        return SimpleNamespace(latents=posterior.latent_dist.mean)


def by_diffusers(pipeline: Any, family: StableDiffusion, recipe: Recipe, image: Any, **options: Any) -> Any:
    assert isinstance(recipe.start, ImageToImage)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(family.scheduler_config, recipe.sampler)
    return pipeline(
        recipe.concepts[0].text,
        image=image,
        strength=recipe.start.strength,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance,
        eta=recipe.eta,
        num_images_per_prompt=recipe.count,
        output_type="latent",
        generator=[torch.Generator().manual_seed(recipe.seed + image) for image in range(recipe.count)],
        **options,
    ).images


def build_recipe(
    recipe: Make, family: StableDiffusion, sampler: str, eta: float, start: ImageToImage, side: int = 64
) -> Recipe:
    return recipe(
        model=family.name,
        sampler=sampler,
        eta=eta,
        guidance=3.5,
        count=2,
        width=side,
        height=side,
        steps=10,
        start=start,
    )


def latents_of(job: Any, blobs: Blobs, family: StableDiffusion) -> torch.Tensor:
    init_latents = load_init(job, blobs, family)
    assert init_latents is not None
    return init_latents.latents


def compare(job: Any, blobs: Blobs, family: StableDiffusion, pipeline_result: torch.Tensor) -> None:
    """Random weights make large numbers, so above 1 the tolerance is relative to the largest."""
    scale = max(1.0, float(pipeline_result.abs().max()))
    for event, expected in zip(run_job(job, blobs, family), pipeline_result, strict=True):
        assert float((event.latents - expected).abs().max()) <= 1e-4 * scale


@pytest.mark.slow
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_image_to_image_equals_the_pipeline(
    small: StableDiffusion, parts: dict[str, Any], recipe: Make, job: Make, sampler: str, eta: float, strength: float
) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], strength)
    one = job(build_recipe(recipe, small, sampler, eta, start, SMALL_SIDE))
    pipeline = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    latents = latents_of(one, blobs, small)
    compare(one, blobs, small, by_diffusers(pipeline, small, one.task, latents.expand(2, -1, -1, -1)))


@pytest.mark.slow
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_inpainting_equals_the_pipeline(
    small: StableDiffusion, parts: dict[str, Any], recipe: Make, job: Make, sampler: str, eta: float, strength: float
) -> None:
    mask = draw_half_mask().rotate(30)
    start, blobs = make_image_to_image([encode_picture(draw_scene())], strength, encode_picture(mask))
    one = job(build_recipe(recipe, small, sampler, eta, start, SMALL_SIDE))
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    latents = latents_of(one, blobs, small)
    size: dict[str, Any] = {"width": SMALL_SIDE, "height": SMALL_SIDE}
    masked_latents = torch.zeros_like(latents[None])  # the masked picture, which only inpainting networks use
    expected = by_diffusers(
        pipeline, small, one.task, latents[None], mask_image=mask, masked_image_latents=masked_latents, **size
    )
    compare(one, blobs, small, expected)


@pytest.fixture(scope="module")
def embedded_parts() -> dict[str, Any]:
    """The parts of the embedded model's pipeline, with an autoencoder that returns the mean."""
    parts_of_pipeline = build_pipeline().components
    mean: Any = MeanAutoencoder.from_config(parts_of_pipeline["vae"].config)
    mean.load_state_dict(parts_of_pipeline["vae"].state_dict())
    return parts_of_pipeline | UNCHECKED | {"vae": mean.eval()}


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "strength"), EMBEDDED_CASES)
def test_image_to_image_of_the_embedded_model_equals_the_pipeline(
    embedded: StableDiffusion, embedded_parts: dict[str, Any], recipe: Make, job: Make, sampler: str, strength: float
) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], strength)
    one = job(build_recipe(recipe, embedded, sampler, 0.0, start))
    pipeline = StableDiffusionImg2ImgPipeline(**embedded_parts, requires_safety_checker=False)
    compare(one, blobs, embedded, by_diffusers(pipeline, embedded, one.task, [draw_scene()] * 2))


def inpaint_by_hand(
    family: StableDiffusion, scheduler: Any, one: Recipe, z: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Image 0 by the loop of diffusers' inpainting pipeline, without its check for four channels."""
    scheduler.set_timesteps(one.steps)
    times = scheduler.timesteps[one.first_step :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(one.first_step)
    generator = torch.Generator().manual_seed(one.seed)
    noise = torch.randn(1, *z.shape, generator=generator)
    x = scheduler.add_noise(z[None], noise, times[:1]) if one.first_step else noise * scheduler.init_noise_sigma
    texts = torch.stack([family.encode_conditioning(text, one)[0] for text in (one.negative, one.concepts[0].text)])
    draws = {"generator": generator} if one.sampler == "ddpm" else {}
    for t, after in zip(times, [*times[1:], None], strict=True):
        rows = torch.cat([scheduler.scale_model_input(x, t)] * 2)
        plain_output, prompted_output = family.denoise(rows, t.float().expand(2), (texts,), "float32").chunk(2)
        x = scheduler.step(plain_output + one.guidance * (prompted_output - plain_output), t, x, **draws).prev_sample
        source = z[None] if after is None else scheduler.add_noise(z[None], noise, after[None])
        x = (1 - mask) * source + mask * x
    return x


@pytest.mark.sampled
@pytest.mark.parametrize(("sampler", "strength"), EMBEDDED_CASES)
def test_inpainting_of_the_embedded_model_equals_the_pipelines_loop(
    embedded: StableDiffusion, recipe: Make, job: Make, sampler: str, strength: float
) -> None:
    start, blobs = make_image_to_image([encode_picture(draw_scene())], strength, encode_picture(draw_half_mask()))
    one = job(build_recipe(recipe, embedded, sampler, 0.0, start))
    init_latents = load_init(one, blobs, embedded)
    assert init_latents is not None
    assert init_latents.mask is not None
    scheduler = build_scheduler(embedded.scheduler_config, sampler)
    expected = inpaint_by_hand(embedded, scheduler, one.task, init_latents.latents, init_latents.mask)
    event = run_job(one, blobs, embedded)[0]
    assert float((event.latents - expected).abs().max()) <= 1e-4
