"""Inpainting models of nine channels: the oracle is diffusers' inpainting pipelines in float32.

They get the masked picture's latents as the autoencoder's mean, since their own draw of the posterior spends noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fixtures.reference_pipeline import call_inpainting
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.batching.engine import Engine
from engine.batching.input_pictures import load_pictures
from engine.batching.job_images import check_job
from engine.calibration.calibration import Calibration
from engine.calibration.measurement import probe_recipe
from engine.contract import PIPELINE_SAMPLERS, Branch, Job, JobRejected, ModelPart, Recipe
from engine.models.loading.pipeline_loader import load_training_pipeline
from shared.init_image_jobs import add_job, draw_half_mask, draw_scene, make_image_to_image
from shared.picture_files import encode_picture
from shared.picture_jobs import run_engine, run_picture_jobs
from shared.small_families import error

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor:FutureWarning"),
]

Make = Callable[..., Any]
KINDS = ("sd_inpainting", "sdxl_inpainting")
MASK = draw_half_mask().rotate(30)
SCENE = encode_picture(draw_scene())
CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


def build(make: Make, family: Any, strength: float = 1.0, **fields: Any) -> tuple[Recipe, dict[str, bytes]]:
    start, blobs = make_image_to_image([SCENE], strength, encode_picture(MASK))
    defaults: dict[str, Any] = {
        "model": family.name,
        "sampler": "euler",
        "steps": 5,
        "width": family.size,
        "height": family.size,
        "guidance": 3.0,
        "guidance_kind": family.guides,
        "start": start,
    }
    return make("a cat", **(defaults | fields)), blobs


def draw(one: Job, family: Any, blobs: dict[str, bytes]) -> torch.Tensor:
    return run_picture_jobs([one], blobs, family)[one.id, 0]


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize(("sampler", "guidance"), [("euler", 3.0), ("ddpm", 3.0), ("dpmpp_2m", 1.0)])
def test_inpainting_equals_the_pipeline(
    load_small: Make, recipe: Make, job: Make, kind: str, strength: float, sampler: str, guidance: float
) -> None:
    family, pipeline = load_small(kind)
    one, blobs = build(recipe, family, strength, sampler=sampler, guidance=guidance)
    assert error(draw(job(one), family, blobs), call_inpainting(pipeline, family, one, blobs)) <= 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_the_masked_picture_equals_the_pipelines(load_small: Make, recipe: Make, kind: str) -> None:
    """Grey inside the mask, encoded as the autoencoder's mean."""
    family, pipeline = load_small(kind)
    one, blobs = build(recipe, family)
    (condition,) = load_pictures(one, blobs, family)
    mask = pipeline.mask_processor.preprocess(MASK, family.size, family.size)
    pixels = pipeline.image_processor.preprocess(draw_scene(), family.size, family.size) * (mask < 0.5)
    with torch.inference_mode():
        mean = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    small_mask = torch.nn.functional.interpolate(mask, size=mean.shape[-2:])
    assert error(condition.tensors[0], torch.cat([small_mask, mean], dim=1)[0]) <= 1e-5
    assert 0 < float(small_mask.mean()) < 1


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_another_autoencoder_encodes_the_masked_picture_too(
    load_small: Make, recipe: Make, job: Make, kind: str, tmp_path: Path
) -> None:
    family, pipeline = load_small(kind)
    torch.manual_seed(5)
    other = type(pipeline.vae).from_config(pipeline.vae.config).eval()
    other.save_pretrained(tmp_path / "vaes" / "fine", safe_serialization=True)
    family.use_data_folder(tmp_path)
    one, blobs = build(recipe, family, autoencoder=ModelPart("fine"))
    (chosen,), (own,) = (load_pictures(each, blobs, family) for each in (one, build(recipe, family)[0]))
    mask = pipeline.mask_processor.preprocess(MASK, family.size, family.size)
    pixels = pipeline.image_processor.preprocess(draw_scene(), family.size, family.size) * (mask < 0.5)
    with torch.inference_mode():
        mean = other.encode(pixels).latent_dist.mean * other.config.scaling_factor
    assert error(chosen.tensors[0][1:], mean[0]) <= 1e-5
    assert error(own.tensors[0][1:], mean[0]) > 1e-2
    assert torch.isfinite(draw(job(one), family, blobs)).all()


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_users_share_forwards_with_their_own_masks(
    load_small: Make, recipe: Make, job: Make, kind: str, watch_rows: Make
) -> None:
    family, pipeline = load_small(kind)
    built = [build(recipe, family, strength, seed=seed) for seed, strength in ((1, 1.0), (2, 0.7), (3, 1.0))]
    jobs = [job(one, user=f"user{number}") for number, (one, _) in enumerate(built)]
    row_counts = watch_rows(family)
    blobs = built[0][1]
    together = run_picture_jobs(jobs, blobs, family, buckets=(8,))
    assert row_counts == [8] * 5  # six rows and two of padding; the second job's fewer steps rode along
    for each in jobs:
        assert error(together[each.id, 0], call_inpainting(pipeline, family, each.task, blobs)) <= 1e-4


def test_an_interrupted_picture_goes_on_from_its_snapshot(load_small: Make, recipe: Make, job: Make) -> None:
    family, _ = load_small("sd_inpainting")
    recipe_, blobs = build(recipe, family, 0.9, steps=8, sampler="dpmpp_2m")
    one = job(recipe_)
    expected = draw(one, family, blobs)
    engine = Engine({family.name: family})
    add_job(engine, one, blobs, family)
    run_engine(engine, {}, steps=3)
    other_engine = Engine({family.name: family})
    add_job(other_engine, one, blobs, family, engine.take_snapshots(one.id, 1))
    assert torch.equal(run_engine(other_engine, {})[one.id, 0], expected)


def test_without_a_mask_the_job_is_refused_with_a_sentence(load_small: Make, recipe: Make, job: Make) -> None:
    family, _ = load_small("sd_inpainting")
    start, _ = make_image_to_image([SCENE], 0.5)
    for other_start in (None, start, Branch("0" * 64, 2)):
        one, _ = build(recipe, family, start=other_start)
        with pytest.raises(JobRejected, match="paints inside a mask: it needs a picture") as caught:
            check_job(job(one), {family.name: family})
        assert caught.value.blame == "member"


def test_such_a_model_says_what_it_needs_and_can_be_timed(load_small: Make) -> None:
    family, _ = load_small("sd_inpainting")
    profile = CALIBRATION.to_model_profile(family)
    assert profile.required == "mask"
    assert not set(profile.samplers) & set(PIPELINE_SAMPLERS)
    x = torch.zeros(2, *family.latent_shape(32, 32))
    texts = family.encode_conditioning("", probe_recipe(family))
    conditioning = tuple(part.expand(2, *part.shape) for part in texts)
    assert family.denoise(x, torch.full((2,), 500.0), conditioning, "float32").shape == x.shape


def test_such_a_model_cannot_be_trained(tmp_path: Path) -> None:
    save_small_pipeline("sd_inpainting", tmp_path / "masked")
    with pytest.raises(JobRejected, match="The model masked is for inpainting"):
        load_training_pipeline(tmp_path / "masked", "masked")
