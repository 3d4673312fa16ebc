"""Control pictures of Flux and Stable Diffusion 3 against diffusers' own pipelines in float32.

The pipelines draw a sample of the control image's latents, where we take the mean; so do they here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.pipelines.controlnet_sd3.pipeline_stable_diffusion_3_controlnet import StableDiffusion3ControlNetPipeline
from diffusers.pipelines.flux.pipeline_flux_controlnet import FluxControlNetPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from benchmarks.fixtures.reference_pipeline import call_pipeline
from benchmarks.fixtures.small_controls import build_flux_controlnet, build_sd3_controlnet, save_control
from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.contract import ControlImage
from engine.models import load_model
from engine.models.families.diffusers_family import DiffusersFamily
from shared.init_image_jobs import draw_scene, hash_blobs, run_job
from shared.picture_files import encode_picture

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]

Make = Callable[..., Any]
SCENE = draw_scene((64, 64))
BLOBS = hash_blobs(encode_picture(SCENE))
(SHA,) = BLOBS
BUILDERS: dict[str, Any] = {"flux": build_flux_controlnet, "sd3": build_sd3_controlnet}
CLASSES: dict[str, Any] = {"flux": FluxControlNetModel, "sd3": SD3ControlNetModel}
PIPELINES: dict[str, Any] = {"flux": FluxControlNetPipeline, "sd3": StableDiffusion3ControlNetPipeline}
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other": {"flux": {"guidance_embeds": False}, "sd3": {"force_zeros_for_pooled_projection": False}},
}


@pytest.fixture(scope="module")
def open_small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[DiffusersFamily, Any, Path]]:
    opened: dict[str, tuple[DiffusersFamily, Any, Path]] = {}

    def open_kind(kind: str) -> tuple[DiffusersFamily, Any, Path]:
        if kind not in opened:
            data = tmp_path_factory.mktemp("data")
            save_small_pipeline(kind, data / "models" / kind)
            pipeline: Any = DiffusionPipeline.from_pretrained(data / "models" / kind)
            for name, fields in FIELDS.items():
                network = BUILDERS[kind](pipeline, **fields.get(kind, {}))
                save_control(network, data / "controlnets" / name)
            family = load_model(kind, data)
            assert isinstance(family, DiffusersFamily)
            opened[kind] = family, pipeline, data / "controlnets"
        return opened[kind]

    return open_kind


def make_controlled(pipeline: Any, **arguments: Any) -> Any:
    """Return the pipeline of a subclass of the same name, whose calls get further arguments."""
    pipeline_class: Any = type(pipeline)

    def call(self: Any, *args: Any, **options: Any) -> Any:
        return pipeline_class.__call__(self, *args, **options, **arguments)

    name = pipeline_class.__name__.replace("ControlNet", "")
    pipeline.__class__ = type(name, (pipeline_class,), {"__call__": call})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["flux", "sd3"])
@pytest.mark.parametrize("names", [("plain",), ("other",), ("plain", "plain")])
def test_latents_equal_the_pipelines(
    open_small: Callable[[str], tuple[DiffusersFamily, Any, Path]],
    recipe: Make,
    job: Make,
    kind: str,
    names: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    family, plain_pipeline, folder = open_small(kind)
    controls = tuple(ControlImage(name, SHA, scale=0.7, stop=0.8) for name in names)
    one = recipe(
        "a cat",
        model=kind,
        sampler="euler",
        steps=4,
        width=64,
        height=64,
        guidance=4.0,
        controls=controls,
        guidance_kind=family.guides,
    )
    (image,) = run_job(job(one), BLOBS, family)
    networks = [CLASSES[kind].from_pretrained(folder / name) for name in names]
    is_one = len(names) == 1
    pipeline = make_controlled(
        PIPELINES[kind](**plain_pipeline.components, controlnet=networks[0] if is_one else networks),
        control_image=SCENE if is_one else [SCENE] * len(names),
        control_guidance_end=0.8,
        controlnet_conditioning_scale=0.7 if is_one else [0.7] * len(names),
    )
    expected = call_pipeline(pipeline, family, one)[0]
    scale = max(1.0, float(expected.abs().max()))
    assert float((image.latents - expected).abs().max()) / scale <= 1e-4
    (plain,) = run_job(job(msgspec.structs.replace(one, controls=())), {}, family)
    assert float((plain.latents - expected).abs().max()) / scale > 1e-3, "otherwise the comparison proves nothing"
