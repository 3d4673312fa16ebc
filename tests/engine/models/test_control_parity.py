"""Control pictures against diffusers' own pipelines in float32, with small networks of random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.adapter import MultiAdapter, T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.controlnet.pipeline_controlnet_img2img import StableDiffusionControlNetImg2ImgPipeline
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import StableDiffusionXLControlNetPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_adapter import StableDiffusionAdapterPipeline
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_xl_adapter import StableDiffusionXLAdapterPipeline
from PIL import Image

from benchmarks.fixtures.small_controls import build_adapter, build_controlnet, save_control
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.batching.engine import Engine, LatentsDone
from engine.contract import ControlImage, Job, Recipe
from engine.models import load_model
from engine.models.families.diffusers_family import DiffusersFamily
from engine.sampling import build_scheduler
from shared.init_image_jobs import add_job, draw_scene, hash_blobs, make_image_to_image, run_job
from shared.picture_files import encode_picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
SIDE = 32  # pixels: at 64, attention alone would take most of the time
SCENE = draw_scene((SIDE, SIDE))
OTHER_SCENE = draw_scene((SIDE, SIDE), "white").rotate(90)
BLOBS = hash_blobs(encode_picture(SCENE), encode_picture(OTHER_SCENE))
SHA, OTHER_SHA = BLOBS
PICTURES = {SHA: SCENE, OTHER_SHA: OTHER_SCENE}
CONTROL_PIPELINES: Mapping[str, Any] = {
    "sd": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
}
ADAPTER_PIPELINES: Mapping[str, Any] = {"sd": StableDiffusionAdapterPipeline, "sdxl": StableDiffusionXLAdapterPipeline}


class Small(NamedTuple):
    """A family with control networks in its data folder, and the parts of the unmodified pipeline."""

    family: DiffusersFamily
    parts: dict[str, Any]
    controls: Path

    def load_controlnet(self, name: str) -> Any:
        return ControlNetModel.from_pretrained(self.controls / name)

    def load_adapter(self, name: str) -> Any:
        return T2IAdapter.from_pretrained(self.controls / name)


@pytest.fixture(scope="module")
def open_small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    opened: dict[str, Small] = {}

    def open_kind(kind: str) -> Small:
        if kind not in opened:
            data = tmp_path_factory.mktemp("data")
            folder = data / "models" / kind
            controls = data / "controlnets"
            save_small_pipeline(kind, folder)
            pipeline: Any = DiffusionPipeline.from_pretrained(folder)
            save_control(build_controlnet(pipeline, seed=1), controls / "lines-canny")
            save_control(build_controlnet(pipeline, seed=2), controls / "depth")
            adapter = "full_adapter" if kind == "sd" else "full_adapter_xl"
            for number, name in enumerate(("sketch", "colours")):
                save_control(build_adapter(pipeline, number, adapter), controls / name)
            family = load_model(kind, data)
            assert isinstance(family, DiffusersFamily)
            opened[kind] = Small(family, pipeline.components, controls)
        return opened[kind]

    return open_kind


def make_recipe(make: Make, kind: str, **fields: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "model": kind,
        "sampler": "ddim",
        "steps": 4,
        "width": SIDE,
        "height": SIDE,
        "guidance": 4.0,
        "negative": "a dog in the grass",
    }
    return make("a cat", **(defaults | fields))


def run_pipeline(pipeline: Any, small: Small, recipe: Recipe, **arguments: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(small.family.scheduler_config, recipe.sampler)
    return pipeline(
        recipe.concepts[0].text,
        negative_prompt=recipe.negative,
        num_inference_steps=recipe.steps,
        width=recipe.width,
        height=recipe.height,
        guidance_scale=recipe.guidance,
        output_type="latent",
        generator=torch.Generator().manual_seed(recipe.seed),
        **arguments,
    ).images[0]


def find_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference; above 1 relative to the largest latent."""
    return float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def run_controlnets(small: Small, kind: str, recipe: Recipe) -> torch.Tensor:
    controls = recipe.controls
    networks = [small.load_controlnet(each.name) for each in controls]
    pictures = [PICTURES[c.picture] for c in controls]
    scales, starts, stops = ([getattr(each, name) for each in controls] for name in ("scale", "start", "stop"))
    is_one = len(controls) == 1
    pipeline = CONTROL_PIPELINES[kind](**small.parts, controlnet=networks[0] if is_one else networks)
    return run_pipeline(
        pipeline,
        small,
        recipe,
        image=pictures[0] if is_one else pictures,
        controlnet_conditioning_scale=scales[0] if is_one else scales,
        control_guidance_start=starts[0] if is_one else starts,
        control_guidance_end=stops[0] if is_one else stops,
    )


CONTROLS = {
    "one": (ControlImage("lines-canny", SHA),),
    "two with scales and intervals": (
        ControlImage("lines-canny", SHA, scale=0.6, stop=0.5),
        ControlImage("depth", OTHER_SHA, scale=1.3, start=0.25),
    ),
    "one network twice": (ControlImage("depth", SHA, scale=0.5), ControlImage("depth", OTHER_SHA, scale=0.5)),
}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("controls", CONTROLS.values(), ids=CONTROLS)
def test_latents_with_controlnets_equal_the_pipelines(
    open_small: Callable[[str], Small], recipe: Make, job: Make, kind: str, controls: tuple[ControlImage, ...]
) -> None:
    small = open_small(kind)
    one = make_recipe(recipe, kind, controls=controls)
    (image,) = run_job(job(one), BLOBS, small.family)
    expected = run_controlnets(small, kind, one)
    assert find_error(image.latents, expected) <= 1e-4
    (plain,) = run_job(job(make_recipe(recipe, kind)), {}, small.family)
    assert find_error(plain.latents, expected) > 1e-2, "otherwise the comparison proves nothing"


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("names", [("sketch",), ("sketch", "colours")])
def test_latents_with_adapters_equal_the_pipelines(
    open_small: Callable[[str], Small], recipe: Make, job: Make, kind: str, names: tuple[str, ...]
) -> None:
    small = open_small(kind)
    pictures = (SHA, OTHER_SHA)
    scales = (0.8, 0.4)[: len(names)]
    controls = tuple(ControlImage(*each) for each in zip(names, pictures, ("none",) * 2, scales, strict=False))
    one = make_recipe(recipe, kind, controls=controls)
    (image,) = run_job(job(one), BLOBS, small.family)
    adapters = [small.load_adapter(name) for name in names]
    is_one = len(names) == 1
    parts = {name: part for name, part in small.parts.items() if kind == "sdxl" or name != "image_encoder"}
    if kind == "sd":
        parts["requires_safety_checker"] = False
    pipeline = ADAPTER_PIPELINES[kind](**parts, adapter=adapters[0] if is_one else MultiAdapter(adapters))
    expected = run_pipeline(
        pipeline,
        small,
        one,
        image=SCENE if is_one else [SCENE, OTHER_SCENE],
        adapter_conditioning_scale=scales[0] if is_one else list(scales),
    )
    assert find_error(image.latents, expected) <= 1e-4
    (plain,) = run_job(job(make_recipe(recipe, kind)), {}, small.family)
    assert find_error(plain.latents, expected) > 1e-3, "otherwise the comparison proves nothing"


def test_an_init_image_and_a_control_equal_the_pipeline(
    open_small: Callable[[str], Small], recipe: Make, job: Make
) -> None:
    """The control's interval counts the steps that run, as the pipeline does."""
    small = open_small("sd")
    content = encode_picture(OTHER_SCENE)
    start, blobs = make_image_to_image([content], 0.5)
    control = ControlImage("lines-canny", SHA, stop=0.5)
    one = make_recipe(recipe, "sd", controls=(control,), start=start, steps=8, negative="")
    (image,) = run_job(job(one), BLOBS | blobs, small.family)
    latents = small.family.encode_image(OTHER_SCENE)[None]
    pipeline: Any = StableDiffusionControlNetImg2ImgPipeline(
        **small.parts, controlnet=small.load_controlnet(control.name), requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(small.family.scheduler_config, one.sampler)
    expected = pipeline(
        "a cat",
        image=latents,
        control_image=SCENE,
        num_inference_steps=8,
        strength=0.5,
        guidance_scale=4.0,
        control_guidance_end=0.5,
        generator=torch.Generator().manual_seed(one.seed),
        output_type="latent",
        controlnet_conditioning_scale=1.0,
    ).images[0]
    assert find_error(image.latents, expected) <= 1e-4


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_rows_with_and_without_controls_share_forwards(
    open_small: Callable[[str], Small], recipe: Make, job: Make, kind: str, watch_rows: Make
) -> None:
    small = open_small(kind)
    lines = ControlImage("lines-canny", SHA, scale=0.7)
    depth = ControlImage("depth", OTHER_SHA, stop=0.6)
    jobs = [
        job(make_recipe(recipe, kind, seed=seed, controls=controls, guidance=guidance))
        for seed, guidance, controls in (
            (1, 4.0, ()),
            (2, 3.0, (lines,)),
            (3, 1.0, (depth,)),
            (4, 5.0, (lines, depth, ControlImage("sketch", SHA))),
        )
    ]
    alone = [run_job(each, BLOBS, small.family)[0].latents for each in jobs]
    rows = watch_rows(small.family)
    together = run_together(jobs, small.family)
    assert len(rows) == 4, "one forward a step for all four"
    for each, expected in zip(jobs, alone, strict=True):
        assert find_error(together[each.id], expected) <= 1e-5


def run_together(jobs: list[Job], family: DiffusersFamily) -> dict[str, torch.Tensor]:
    engine = Engine({family.name: family})
    latents = dict[str, torch.Tensor]()
    for each in jobs:
        add_job(engine, each, BLOBS, family)
    while not engine.is_idle:
        latents |= {event.job: event.latents for event in engine.step() if isinstance(event, LatentsDone)}
    return latents


def test_a_resumed_picture_with_controls_has_the_same_bits(
    open_small: Callable[[str], Small], recipe: Make, job: Make
) -> None:
    small = open_small("sd")
    one = job(make_recipe(recipe, "sd", controls=(ControlImage("lines-canny", SHA, "canny", stop=0.75),)))
    (expected,) = run_job(one, BLOBS, small.family)
    engine = Engine({"sd": small.family})
    add_job(engine, one, BLOBS, small.family)
    engine.step()
    engine.step()
    snapshots = engine.take_snapshots(one.id, 1)
    small.family.conditioners[0].release()
    (resumed,) = run_job(one, BLOBS, small.family, snapshots)
    assert torch.equal(resumed.latents, expected.latents)


def test_half_precision_is_close(open_small: Callable[[str], Small], recipe: Make, job: Make) -> None:
    small = open_small("sd")
    exact, half = (
        run_job(
            job(make_recipe(recipe, "sd", dtype=dtype, steps=2, controls=(ControlImage("depth", SHA, scale=0.5),))),
            BLOBS,
            small.family,
        )[0].latents
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert 0 < find_error(half, exact) < 0.2


def test_a_pinned_batch_shape_gives_the_same_bits_beside_others(
    open_small: Callable[[str], Small], recipe: Make, job: Make
) -> None:
    small = open_small("sd")
    pinned = job(make_recipe(recipe, "sd", bucket=6, controls=(ControlImage("lines-canny", SHA, scale=0.7),)))
    (alone,) = run_job(pinned, BLOBS, small.family)
    others = [
        job(make_recipe(recipe, "sd", seed=seed, bucket=6, controls=controls))
        for seed, controls in ((8, ()), (9, (ControlImage("lines-canny", OTHER_SHA),)))
    ]
    assert torch.equal(run_together([pinned, *others], small.family)[pinned.id], alone.latents)


def test_a_control_picture_of_another_shape_shows_its_middle(
    open_small: Callable[[str], Small], recipe: Make, job: Make
) -> None:
    small = open_small("sd")
    wide = Image.new("RGB", (2 * SIDE, SIDE))
    wide.paste(SCENE, (SIDE // 2, 0))
    blobs = BLOBS | hash_blobs(encode_picture(wide))
    (name,) = blobs.keys() - BLOBS.keys()
    middle, square = (
        run_job(job(make_recipe(recipe, "sd", controls=(ControlImage("depth", sha),))), blobs, small.family)[0].latents
        for sha in (name, SHA)
    )
    torch.testing.assert_close(middle, square, atol=1e-3, rtol=1e-3)
