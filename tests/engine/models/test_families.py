"""Foreign model families: the oracle is each unmodified pipeline with the same weights, seeds and scheduler."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fixtures.reference_pipeline import call_pipeline as by_pipeline
from benchmarks.fixtures.small_pipelines import USUAL_SAMPLERS, save_small_pipeline
from benchmarks.report.measures import psnr
from engine.batching.engine import Engine
from engine.batching.model_inputs import build_conditioning
from engine.contract import Concept, Job, JobRejected
from engine.models import load_folder
from engine.models.families.diffusers_family import choose_guidance, find_few_step_sampling
from engine.models.families.stable_diffusion import StableDiffusion
from shared.small_families import Make, build_recipe, by_engine, error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

KINDS = tuple(USUAL_SAMPLERS)
BY_ROWS = tuple(kind for kind in KINDS if kind not in ("sd_lcm", "lcm", "flux", "flux2"))
OTHERS = [
    ("sdxl", "ddim"),
    ("sdxl", "dpmpp_2m"),
    ("sd3", "dpmpp_2m"),
    ("flux", "dpmpp_2m"),
    ("sana", "euler"),
    ("flux2", "dpmpp_2m"),
    ("pixart", "ddim"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("kind", "sampler"), [*USUAL_SAMPLERS.items(), *OTHERS])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_latents_equal_the_pipelines(
    load_small: Make, recipe: Make, job: Make, finish: Make, kind: str, sampler: str, guidance: float
) -> None:
    family, pipeline = load_small(kind)
    one = build_recipe(recipe, family, sampler=sampler, guidance=guidance, count=2)
    expected_pictures = by_pipeline(pipeline, family, one)
    for actual, expected in zip(by_engine(family, one, job, finish), expected_pictures, strict=True):
        assert error(actual, expected) <= 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize("kind", BY_ROWS)
def test_a_negative_prompt_acts_as_in_the_pipeline(
    load_small: Make, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    family, pipeline = load_small(kind)
    one = build_recipe(recipe, family, guidance=4.0, negative="a dog in the grass")
    (actual,) = by_engine(family, one, job, finish)
    assert error(actual, by_pipeline(pipeline, family, one)[0]) <= 1e-4
    assert error(actual, by_pipeline(pipeline, family, build_recipe(recipe, family, guidance=4.0))[0]) > 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_guidance_change_the_latents_of_the_small_models(
    load_small: Make, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """Otherwise the comparisons with the pipeline would prove nothing."""
    family, _ = load_small(kind)
    one, other, unguided_job = (
        by_engine(family, build_recipe(recipe, family, text, guidance=guidance), job, finish)[0]
        for text, guidance in (("a cat", 4.0), ("a dog in the grass", 4.0), ("a cat", 1.0))
    )
    assert error(one, other) > 1e-3
    assert error(one, unguided_job) > 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_users_share_forwards_and_get_the_pipelines_latents(
    load_small: Make, recipe: Make, job: Make, finish: Make, kind: str, watch_rows: Make
) -> None:
    family, pipeline = load_small(kind)
    rows = watch_rows(family)
    first = job(build_recipe(recipe, family, steps=5, guidance=4.0), user="ann")
    second = job(build_recipe(recipe, family, "a longer text of trees", steps=3, guidance=2.0, seed=3), user="bea")
    engine = Engine({kind: family})
    engine.add(first)
    engine.step()
    engine.add(second)
    latents = finish(engine)
    assert len(rows) == 5  # the second job's steps rode along in the first's forwards
    assert max(rows) == rows[0] * 2
    for each in (first, second):
        assert error(latents[each.id, 0], by_pipeline(pipeline, family, each.task)[0]) <= 1e-4


@pytest.mark.sampled
@pytest.mark.parametrize(("kind", "size"), [("sd_lcm", (64, 64)), *((kind, (64, 96)) for kind in KINDS)])
def test_pictures_equal_the_pipelines(
    load_small: Make, recipe: Make, job: Make, finish: Make, kind: str, size: tuple[int, int]
) -> None:
    family, pipeline = load_small(kind)
    one = build_recipe(recipe, family, guidance=3.0, width=size[0], height=size[1])
    (actual,) = by_engine(family, one, job, finish)
    picture = family.decode(actual)
    assert actual.shape == family.latent_shape(*size)
    assert picture.size == size
    assert psnr(picture, by_pipeline(pipeline, family, one, "pil")[0]) >= 60


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen_image"])
def test_an_encoded_picture_equals_the_autoencoders_mean(load_small: Make, kind: str) -> None:
    family, pipeline = load_small(kind)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    latents = family.encode_image(picture)
    assert latents.shape == family.latent_shape(96, 64)
    with torch.inference_mode():
        pixels = pipeline.image_processor.preprocess(picture)
        if kind.startswith("flux2"):
            torch.testing.assert_close(latents, pipeline._encode_vae_image(pixels, None)[0])
            return
        posterior = pipeline.vae.encode(pixels, return_dict=False)[0]
    mean = posterior.mean[0] if hasattr(posterior, "mean") and not isinstance(posterior, torch.Tensor) else posterior[0]
    config = pipeline.vae.config
    torch.testing.assert_close(latents / config.scaling_factor + (config.get("shift_factor") or 0.0), mean)


def test_an_encoded_picture_of_qwen_image_is_a_film_of_one_frame(load_small: Make) -> None:
    family, pipeline = load_small("qwen_image")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    with torch.inference_mode():
        pixels = pipeline.image_processor.preprocess(picture).unsqueeze(2)
        frame = pipeline.vae.encode(pixels).latent_dist.mean[0, :, 0]
    config = pipeline.vae.config
    mean, deviation = (torch.tensor(each).view(-1, 1, 1) for each in (config.latents_mean, config.latents_std))
    torch.testing.assert_close(family.encode_image(picture), (frame - mean) / deviation)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_close_and_returns_float32(load_small: Make, recipe: Make, kind: str) -> None:
    family, _ = load_small(kind)
    one = build_recipe(recipe, family, guidance=2.0)
    texts = tuple(part[None] for part in family.encode_conditioning("a cat", one))
    x = torch.randn(1, *family.latent_shape(64, 64), generator=torch.manual_seed(0))
    t = torch.tensor([500.0])
    exact_output, bfloat16_output = (family.denoise(x, t, texts, dtype) for dtype in ("float32", "bfloat16"))
    assert bfloat16_output.dtype == torch.float32
    assert bfloat16_output.shape == exact_output.shape == x.shape
    assert 0 < float((bfloat16_output - exact_output).std() / exact_output.std()) < 0.1


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_gives_the_same_bits_after_any_other(load_small: Make, recipe: Make, kind: str, dtype: str) -> None:
    """Texts of other lengths have the same shapes outside, but other shapes inside some networks."""
    family, _ = load_small(kind)
    one = build_recipe(recipe, family)
    x = torch.randn(2, *family.latent_shape(64, 64), generator=torch.manual_seed(0))
    t = torch.tensor([500.0, 20.0])

    def predict(*texts: str) -> torch.Tensor:
        parts = zip(*(family.encode_conditioning(text, one) for text in texts), strict=True)
        return family.denoise(x, t, tuple(torch.stack(each) for each in parts), dtype)

    first = predict("a cat", "a dog")
    other_outputs = [predict("a longer text of trees " * 3, "") for _ in range(3)]
    assert torch.equal(predict("a cat", "a dog"), first)
    assert all(torch.equal(other, other_outputs[0]) and not torch.equal(other, first) for other in other_outputs)


def test_each_family_announces_its_sizes_tokens_and_guidance(load_small: Make) -> None:
    families = {kind: load_small(kind)[0] for kind in KINDS}
    assert {kind: (each.size, each.multiple) for kind, each in families.items()} == {
        "sd_lcm": (64, 4),
        "sdxl": (64, 8),
        "lcm": (64, 8),
        "sd3": (64, 8),
        "flux": (256, 4),
        "schnell": (256, 4),
        "zimage": (256, 4),
        "sana": (64, 32),
        "flux2": (256, 4),
        "flux2_klein": (256, 4),
        "chroma": (256, 4),
        "qwen_image": (256, 4),
        "lumina2": (64, 16),
        "pixart": (256, 16),
        "pixart_alpha": (256, 4),
        "hidream": (96, 4),
    }
    assert [families[kind].tokens for kind in ("sd3", "flux", "zimage", "sana")] == [256, 512, 512, 300]
    newer_kinds = ("flux2", "chroma", "qwen_image", "lumina2", "pixart", "hidream")
    assert [families[kind].tokens for kind in newer_kinds] == [512, 512, 1024, 256, 300, 128]
    assert {kind for kind, each in families.items() if each.guides == "network"} == {"sd_lcm", "lcm", "flux", "flux2"}
    assert families["flux"].guidance == 3.5
    assert families["schnell"].guidance == 1.0
    assert families["sd3"].samplers[:2] == families["zimage"].samplers[:2] == ("euler", "dpmpp_2m")


def test_a_latent_consistency_pipeline_loads_as_stable_diffusion_with_inner_guidance(
    tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    save_small_pipeline("latent_consistency", tmp_path / "lcm")
    family = load_folder(str(tmp_path / "lcm"), "dreamy")
    assert isinstance(family, StableDiffusion)
    assert (family.guides, family.guidance, family.default_sampling) == ("network", 8.0, (8, "lcm"))
    one = build_recipe(recipe, family, sampler="lcm", steps=4, guidance=6.0)
    (actual,) = by_engine(family, one, job, finish)
    pipeline = import_module("diffusers").DiffusionPipeline.from_pretrained(tmp_path / "lcm")
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == "LatentConsistencyModelPipeline"
    expected = pipeline(
        "a cat",
        num_inference_steps=4,
        guidance_scale=6.0,
        width=64,
        height=64,
        output_type="latent",
        generator=torch.Generator().manual_seed(one.seed),
    ).images
    assert error(actual, expected[0]) <= 1e-4


@pytest.mark.parametrize("first", ["a cat", "a dog in the grass"])
def test_a_negative_concept_may_come_first(load_small: Make, recipe: Make, job: Make, finish: Make, first: str) -> None:
    """With guidance inside the network, there is no empty text to start from."""
    family, _ = load_small("flux")
    weights = {"a cat": 1.0, "a dog in the grass": -0.5}
    second = next(text for text in weights if text != first)
    one = build_recipe(recipe, family)
    (plain_latents,) = by_engine(family, one, job, finish)
    orders = (tuple(Concept(each, weights[each]) for each in texts) for texts in ((first, second), (second, first)))
    latents = [
        by_engine(family, msgspec.structs.replace(one, concepts=concepts), job, finish)[0] for concepts in orders
    ]
    assert torch.equal(*latents)
    assert error(latents[0], plain_latents) > 1e-3


@pytest.mark.parametrize(
    ("name", "scheduler", "expected_steps"),
    [
        ("sdxl-turbo", "EulerAncestralDiscreteScheduler", (4, "euler")),
        ("lcm-sdxl", "EulerDiscreteScheduler", (8, "lcm")),
        ("dreamy", "LCMScheduler", (8, "lcm")),
        ("turbofan", "PNDMScheduler", None),
    ],
)
def test_few_step_models_default_to_few_steps(name: str, scheduler: str, expected_steps: Any) -> None:
    assert find_few_step_sampling(name, {"_class_name": scheduler}, ("euler", "lcm", "ddpm")) == expected_steps
    assert find_few_step_sampling(name, {"_class_name": scheduler}, ("native",)) is None


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("Z-Image-Turbo", 1.0), ("sdxl-lightning-4step", 1.0), ("SD3.5-Large", 5.0), ("turbofan", 5.0), ("lcm", 1.0)],
)
def test_a_distilled_model_is_recognised_by_its_name(name: str, guidance: float) -> None:
    assert choose_guidance(name, 5.0) == guidance


def test_an_empty_negative_prompt_of_sdxl_is_all_zeros(load_small: Make, recipe: Make) -> None:
    family, _ = load_small("sdxl")
    one = build_recipe(recipe, family)
    states, pooled_states, _ = family.encode_conditioning("", one, negative=True)
    assert not states.any()
    assert not pooled_states.any()
    assert family.encode_conditioning("", one)[0].any()


@pytest.mark.parametrize("kind", ["qwen_image", "lumina2"])
def test_a_mix_is_as_long_as_its_longest_text(
    load_small: Make, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    family, _ = load_small(kind)
    concepts = Concept("a cat", 0.75), Concept("a cat in a red hat on a table by the window", 0.25)
    one = build_recipe(recipe, family, concepts=concepts, mixed=True, guidance=1.0, steps=2)
    short, long = (family.encode_conditioning(each.text, one) for each in concepts)
    (states, length), _ = build_conditioning(one, family)
    torch.testing.assert_close(states[0], 0.75 * short[0] + 0.25 * long[0])
    assert (length.dtype, length[0].tolist()) == (long[1].dtype, long[1].tolist())
    assert short[1].tolist() != long[1].tolist()
    for dtype in ("float32", "bfloat16"):
        (latents,) = by_engine(family, msgspec.structs.replace(one, dtype=dtype), job, finish)
        assert latents.isfinite().all()


def test_sdxl_is_conditioned_on_the_size(load_small: Make, recipe: Make) -> None:
    family, _ = load_small("sdxl")
    *_, sizes = family.encode_conditioning("a cat", build_recipe(recipe, family, width=64, height=96))
    assert sizes.tolist() == [96, 64, 0, 0, 96, 64]


def test_latents_with_a_mean_and_deviation_per_channel_are_normalised(
    load_small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like Playground 2.5: a mean and a deviation per channel."""
    family, _ = load_small("sdxl")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    plain_latents = family.encode_image(picture)
    scale = family._vae.config.scaling_factor
    mean = [1.0, -2.0, 3.0, 0.5]
    deviation = [8.0, 5.0, 6.0, 4.0]
    config = {**family._vae.config, "latents_mean": mean, "latents_std": deviation}
    monkeypatch.setattr(family._vae, "_internal_dict", type(family._vae.config)(config))
    centred_latents = family.encode_image(picture)
    centre, spread = (torch.tensor(each).view(-1, 1, 1) for each in (mean, deviation))
    torch.testing.assert_close(centred_latents * spread / scale + centre, plain_latents / scale)
    monkeypatch.undo()
    before = family.decode(plain_latents)
    monkeypatch.setattr(family._vae, "_internal_dict", type(family._vae.config)(config))
    assert psnr(family.decode(centred_latents), before) >= 60


def test_sd3_shifts_its_schedule_by_size_if_configured(
    load_small: Make, recipe: Make, job: Make, finish: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, pipeline = load_small("sd3")
    monkeypatch.setattr(family, "scheduler_config", {**family.scheduler_config, "use_dynamic_shifting": True})
    small = family.plan("euler", 4, 0.0, 64, 64)
    large = family.plan("euler", 4, 0.0, 128, 128)
    assert small.table[2, 0] < large.table[2, 0]
    one = build_recipe(recipe, family, height=96, guidance=3.0)
    (actual,) = by_engine(family, one, job, finish)
    assert error(actual, by_pipeline(pipeline, family, one)[0]) <= 1e-4


def test_sd3_refuses_sides_beyond_its_positions(load_small: Make, recipe: Make, job: Make) -> None:
    family, _ = load_small("sd3")
    each: Job = job(build_recipe(recipe, family, width=264, height=16))
    with pytest.raises(JobRejected, match="a side has at most 256 pixels") as error:
        Engine({"sd3": family}).add(each)
    assert error.value.blame == "member"
