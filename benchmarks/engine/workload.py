"""The benchmark load, eight users at once on the embedded model, and the runs of both sides under a clock.

The other side is the unmodified `StableDiffusionPipeline` on the same weights and threads, one job after another,
decoding included. It runs as diffusers does by default (float32, eager), in our number format, or compiled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.fixtures.jobs import make_job, make_recipe, name_blobs, run_to_end
from engine.batching.engine import Engine, Event, LatentsDone, StepDone
from engine.batching.input_pictures import load_init_latents
from engine.contract import Dtype, ImageToImage, InitImage, Job, Recipe, Sampler
from engine.models.family import TORCH_DTYPES, Family
from engine.models.library_logging import silence_libraries

USERS = 8
USER_PROMPTS = ("red apple", "blue car", "cat face", "green tree", "pizza", "rocket", "yellow star", "purple octopus")
STRENGTH = 0.5  # of the init image
# (sampler, factor on the steps, guidance): five samplers, five numbers of steps; the sum of row-steps is the same as
# without `mixed`.
SAMPLER_MIX: tuple[tuple[Sampler, float, bool], ...] = (
    ("ddpm", 1.0, True),
    ("ddim", 0.8, True),
    ("euler", 1.2, True),
    ("dpmpp_2m", 0.6, True),
    ("euler_ancestral", 1.4, True),
    ("ddim", 2.0, False),
    ("dpmpp_2m", 2.0, False),
    ("ddpm", 1.0, True),
)


@dataclass(frozen=True)
class Workload:
    """One job for each of `users`: `count` pictures in `steps` steps, at the family's default guidance.

    `mixed` gives each user another sampler, number of steps or guidance, with the same row-steps in total.
    `with_init_image` starts every job from an init image and a mask, with as many steps run. `batch_limit` is that of a
    forward, in rows.
    """

    steps: int
    dtype: Dtype
    count: int = 1
    users: int = USERS
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sampler: Sampler = "ddpm"
    mixed: bool = False
    with_init_image: bool = False
    batch_limit: int = 32
    ladder: bool = False

    def make_jobs(self, family: Family) -> list[Job]:
        return [self._make_job(family, number) for number in range(self.users)]

    def _make_job(self, family: Family, user_number: int) -> Job:
        sampler = self.sampler
        steps = self.steps
        guidance = family.guidance
        if self.mixed:
            sampler, step_factor, is_guided = SAMPLER_MIX[user_number % len(SAMPLER_MIX)]
            steps = round(self.steps * step_factor)
            guidance = family.guidance if is_guided else 1.0
        image_to_image = None
        if self.with_init_image:
            steps = round(steps / STRENGTH)
            image_to_image = make_image_to_image()
        recipe = make_recipe(
            family,
            USER_PROMPTS[user_number % len(USER_PROMPTS)],
            sampler=sampler,
            steps=steps,
            seed=user_number,
            guidance=guidance,
            count=self.count,
            dtype=self.dtype,
            guidance_start=self.guidance_interval[0],
            guidance_stop=self.guidance_interval[1],
            start=image_to_image,
        )
        return make_job(recipe, user_number, ladder=self.ladder)


def make_image_to_image() -> ImageToImage:
    """Return the init image as a recipe names it."""
    image_hash, mask_hash = make_blobs()
    return ImageToImage((InitImage(image_hash),), STRENGTH, mask_hash)


@lru_cache(maxsize=1)
def make_blobs() -> Mapping[str, bytes]:
    """Return the PNGs by SHA-256: a gradient picture and a mask whose right half is white."""
    gradient = Image.linear_gradient("L")
    image = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    return name_blobs(image, gradient.rotate(90).point([0] * 128 + [255] * 128))[1]


def time_engine(family: Family, load: Workload) -> float:
    """Return the seconds in which our engine finishes and decodes all users' pictures."""
    started_at = time.perf_counter()
    picture_count = 0
    for event in run_engine(family, load):
        if isinstance(event, LatentsDone):
            family.decode(event.latents)
            picture_count += 1
    seconds = time.perf_counter() - started_at
    if not 0 < picture_count == load.users * load.count:
        raise RuntimeError(f"{picture_count} pictures were finished, not {load.users * load.count}: there is no figure")
    return seconds


def run_engine(family: Family, load: Workload, *, with_previews: bool = False) -> Iterator[Event]:
    """Yield our engine's events until every user's latents are done. Raises RuntimeError if a job fails."""
    return run_jobs(family, load.make_jobs(family), load.batch_limit, with_previews=with_previews)


def run_jobs(family: Family, jobs: Sequence[Job], batch_limit: int, *, with_previews: bool = False) -> Iterator[Event]:
    """Yield our engine's events until the latents of all jobs are done. Raises RuntimeError if a job fails."""
    engine = Engine({family.name: family}, rows=batch_limit)
    for job in jobs:
        assert isinstance(job.task, Recipe)
        engine.add(job, (), load_init_latents(job.task, make_blobs(), family))
        engine.watch(job.id, with_previews)
    return run_to_end(engine)


def time_diffusers(pipeline: Any, family: Family, load: Workload) -> float:
    """Return the seconds in which the diffusers pipeline runs the same jobs, one after another."""
    started_at = time.perf_counter()
    for job in load.make_jobs(family):
        run_pipeline(pipeline, job)
    return time.perf_counter() - started_at


def run_pipeline(pipeline: Any, job: Job, **pipeline_options: Any) -> Any:
    """Run the unmodified pipeline on one job's recipe, with the same seeds as ours."""
    recipe = job.task
    assert isinstance(recipe, Recipe)
    seeds = range(recipe.seed, recipe.seed + recipe.count)
    return pipeline(
        recipe.concepts[0].text,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance,
        num_images_per_prompt=recipe.count,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **pipeline_options,
    ).images


def cast_pipeline(pipeline: Any, dtype: Dtype) -> Any:
    with silence_libraries():  # diffusers warns of modules to keep in float32, and names none
        return pipeline.to(TORCH_DTYPES[dtype])


def time_engine_previews(family: Family, load: Workload, step_share: float = 0.1) -> list[float]:
    """Return the seconds until each user sees our decoded preview at `step_share` of the steps (0: any), ascending."""
    started_at = time.perf_counter()
    preview_times = dict[str, float]()
    for event in run_engine(family, load, with_previews=True):
        if not isinstance(event, StepDone) or event.x0 is None or event.job in preview_times:
            continue
        if event.step < load.steps * step_share:
            continue
        family.decode(event.x0)
        preview_times[event.job] = time.perf_counter() - started_at
        if len(preview_times) == load.users:
            break
    return sorted(preview_times.values())


def time_pipeline_previews(pipeline: Any, family: Family, load: Workload, step_share: float = 0.1) -> list[float]:
    """Return the same for the pipeline: its step callback decodes, and later users wait for whole jobs."""
    started_at = time.perf_counter()
    preview_times = list[float]()

    def record_preview(_: Any, step: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == max(1, int(load.steps * step_share)):
            family.decode(state["latents"][0].float())
            preview_times.append(time.perf_counter() - started_at)
        return state

    *earlier_jobs, last_job = load.make_jobs(family)
    for job in earlier_jobs:
        run_pipeline(pipeline, job, callback_on_step_end=record_preview)
    stop = _stop_after_preview(record_preview, preview_times, load.users)
    run_pipeline(pipeline, last_job, callback_on_step_end=stop)
    return sorted(preview_times)


def _stop_after_preview(callback: Any, preview_times: list[float], user_count: int) -> Any:
    """Wrap the callback to stop the last job after its preview: nothing is measured after that."""

    def stopping_callback(pipeline: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = callback(pipeline, step, timestep, state)
        pipeline._interrupt = len(preview_times) == user_count
        return state

    return stopping_callback


def percentile_95(values: list[float]) -> float:
    """Return the 95th percentile by linear interpolation, numpy's definition; NaN if there are no values."""
    return float(np.percentile(values, 95)) if values else math.nan
