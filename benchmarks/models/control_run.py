"""Measures steps with two ControlNets and a reference picture in their own process: the engine's, and diffusers'.

python -m benchmarks.models.control_run RUN_SPEC.json

It reads the file of `engine_run`, builds the networks of the model's own size with random weights, and prints one line
of JSON: seconds of a step on both sides, and the engine's seconds outside all networks.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.fixtures.jobs import make_job, make_recipe, name_blobs
from benchmarks.fixtures.small_controls import ADAPTER_FILE, EMBEDDING_WIDTHS
from benchmarks.models.diffusers_run import StepClock, print_output_line, synchronize_gpu
from benchmarks.models.random_weights import SCALE as REFERENCE_SCALE
from benchmarks.models.random_weights import ensure_adapter, write_network
from engine import models
from engine.batching.engine import Engine, JobFailure
from engine.batching.input_pictures import load_pictures
from engine.calibration.calibration import calibrate
from engine.contract import ControlImage, Dtype, Recipe, ReferenceImage
from engine.device.memory import choose_device
from engine.models.control_networks import ControlNet
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.family import TORCH_DTYPES
from engine.models.files.added_kind import CONTROL_FOLDER, REFERENCE_FOLDER
from engine.models.picture_conditions import PictureConditions

diffusers: Any = import_module("diffusers")  # their lazy modules export nothing that a type checker sees
CONTROL_NAMES = ("one", "two")
SCALES = (0.7, 0.9)
ADAPTER_NAME = "plus"
CONTROL_PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLControlNetPipeline",
}


class NetworkClock:
    """The seconds inside networks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started_at = 0.0

    @contextmanager
    def watch(self, networks: list[Any]) -> Generator[None]:
        handles = [network.register_forward_pre_hook(self._start) for network in networks]
        handles += [network.register_forward_hook(self._stop) for network in networks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, *_: Any) -> None:
        synchronize_gpu()
        self._started_at = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        synchronize_gpu()
        self.seconds += time.perf_counter() - self._started_at


def main(run_spec: dict[str, Any]) -> None:
    picture = Image.linear_gradient("L").resize((run_spec["side"], run_spec["side"])).convert("RGB")
    _, blobs = name_blobs(picture)
    dtype, pipeline_class, step_seconds, outside_seconds = _measure_engine(run_spec, blobs)
    gc.collect()  # before diffusers loads the same networks once more
    reference_seconds = _time_diffusers(run_spec, pipeline_class, dtype, picture)
    print_output_line(step=step_seconds, outside=outside_seconds, diffusers=reference_seconds, dtype=dtype)


def _measure_engine(run_spec: dict[str, Any], blobs: dict[str, bytes]) -> tuple[Dtype, str, float, float]:
    """Return the model's number format and pipeline, the mean seconds of a step, and those outside the networks."""
    data_folder = Path(run_spec["data"])
    family = models.load_model(run_spec["folder"], data_folder, device=choose_device())
    assert isinstance(family, DiffusersFamily)
    family.forward_runner.disable_optimizations()  # both sides run the networks plainly
    _write_controlnets(family.pipeline, data_folder / CONTROL_FOLDER)
    ensure_adapter(data_folder / REFERENCE_FOLDER / ADAPTER_NAME, family.pipeline.unet)
    dtype = calibrate(family, data_folder / "calibration.json").dtype
    recipe = _make_recipe(run_spec, family, dtype, next(iter(blobs)))
    return dtype, type(family.pipeline).__name__, *_time_engine(family, recipe, load_pictures(recipe, blobs, family))


def _write_controlnets(pipeline: Any, folder: Path) -> None:
    widths = EMBEDDING_WIDTHS[pipeline.vae_scale_factor]
    with torch.device("meta"):
        network = diffusers.ControlNetModel.from_unet(
            pipeline.unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=False
        )
    for name in CONTROL_NAMES:
        write_network(network, folder / name)


def _make_recipe(run_spec: dict[str, Any], family: DiffusersFamily, dtype: Dtype, sha: str) -> Recipe:
    controls = tuple(ControlImage(name, sha, scale=scale) for name, scale in zip(CONTROL_NAMES, SCALES, strict=True))
    return make_recipe(
        family,
        run_spec["prompt"],
        sampler="ddim",
        steps=run_spec["steps"],
        guidance=run_spec["guidance"],
        width=run_spec["side"],
        height=run_spec["side"],
        dtype=dtype,
        controls=controls,
        references=(ReferenceImage(ADAPTER_NAME, sha, REFERENCE_SCALE),),
    )


def _time_engine(family: DiffusersFamily, recipe: Recipe, pictures: PictureConditions) -> tuple[float, float]:
    """Return the mean seconds of a step after the first, and those outside the networks."""
    controls = {id(each.network): each.network for each in pictures if isinstance(each.network, ControlNet)}
    networks = [family.get_network(recipe.dtype), *(control.network for control in controls.values())]
    engine = Engine({family.name: family})
    clock = NetworkClock()
    engine.add(make_job(recipe), (), None, pictures)
    with clock.watch(networks):
        engine.step()
        synchronize_gpu()
        clock.seconds = 0.0
        started_at = time.perf_counter()
        steps = recipe.steps - 1
        for _ in range(steps):
            if failures := [event for event in engine.step() if isinstance(event, JobFailure)]:
                raise RuntimeError(failures[0].reason)
        synchronize_gpu()
        seconds = time.perf_counter() - started_at
    engine.close()
    return seconds / steps, (seconds - clock.seconds) / steps


def _time_diffusers(run_spec: dict[str, Any], pipeline_class: str, dtype: Dtype, picture: Image.Image) -> float | None:
    """Return the mean seconds of a step of diffusers' own pipeline with the same networks."""
    torch_dtype = TORCH_DTYPES[dtype]
    data_folder = Path(run_spec["data"])
    networks = [
        diffusers.ControlNetModel.from_pretrained(data_folder / CONTROL_FOLDER / name, dtype=torch_dtype)
        for name in CONTROL_NAMES
    ]
    pipeline = getattr(diffusers, CONTROL_PIPELINES[pipeline_class]).from_pretrained(
        run_spec["folder"], controlnet=networks, dtype=torch_dtype
    )
    adapter_folder = str(data_folder / REFERENCE_FOLDER / ADAPTER_NAME)
    pipeline.load_ip_adapter(adapter_folder, subfolder="", weight_name=ADAPTER_FILE)
    pipeline.set_ip_adapter_scale(REFERENCE_SCALE)
    pipeline.to(choose_device())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    step_clock = StepClock()
    pipeline(
        run_spec["prompt"],
        image=[picture, picture],
        ip_adapter_image=picture,
        num_inference_steps=run_spec["steps"],
        guidance_scale=run_spec["guidance"],
        height=run_spec["side"],
        width=run_spec["side"],
        output_type="latent",
        controlnet_conditioning_scale=list(SCALES),
        callback_on_step_end=step_clock,
        generator=torch.Generator().manual_seed(0),
    )
    return step_clock.mean_seconds()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(json.loads(Path(sys.argv[1]).read_text()))
