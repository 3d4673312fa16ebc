"""The benchmark load, eight users at once on the embedded model, and the runs of both sides under a clock.

The other side is the unmodified `StableDiffusionPipeline` on the same weights and threads, one job after another,
decoding included. It runs as diffusers does by default (float32, eager), in our number format, or compiled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from engine.beginning import read
from engine.bench import brought
from engine.engine import Developed, Engine, Event, Failed
from engine.families.family import TORCH, Family
from engine.job import Concept, Dtype, Job, Recipe, Sampler, Share

USERS = 8
PROMPTS = ("red apple", "blue car", "cat face", "green tree", "pizza", "rocket", "yellow star", "purple octopus")
DEADLINE = 4e9  # far in the future: no job expires here


@dataclass(frozen=True)
class Load:
    """One job for each of `users`: `count` pictures in `steps` steps, at the family's default guidance.

    `interval` is the guidance interval. `mixed` gives each user another sampler, number of steps or guidance, with the
    same row-steps in total. `begun` starts every job from an init image and a mask, with as many steps run. `rows` is
    the batch limit of a forward.
    """

    steps: int
    dtype: Dtype
    count: int = 1
    users: int = USERS
    interval: tuple[float, float] = (0.0, 1.0)
    sampler: Sampler = "ddpm"
    mixed: bool = False
    begun: bool = False
    rows: int = 32
    ladder: bool = False

    def jobs(self, family: Family) -> list[Job]:
        return [self._job(family, number) for number in range(self.users)]

    def _job(self, family: Family, number: int) -> Job:
        sampler, steps, guidance = self.sampler, self.steps, family.guidance
        if self.mixed:
            sampler, longer, guided = MIXTURE[number % len(MIXTURE)]
            steps, guidance = round(self.steps * longer), family.guidance if guided else 1.0
        steps, start = (round(steps / brought.STRENGTH), brought.start()) if self.begun else (steps, None)
        recipe = Recipe(
            concepts=(Concept(PROMPTS[number % len(PROMPTS)]),), model=family.name, sampler=sampler, steps=steps,
            seed=number, guidance=guidance, width=family.size, height=family.size, count=self.count, dtype=self.dtype,
            guidance_start=self.interval[0], guidance_stop=self.interval[1],
            start=start,
        )  # fmt: skip
        share = Share("standard", "bench", f"user-{number}")
        return Job(id=f"{number:026d}", task=recipe, share=share, cost=1.0, deadline=DEADLINE, ladder=self.ladder)


# (sampler, factor on the steps, guidance): five samplers, five numbers of steps; row-steps in total as without.
MIXTURE: tuple[tuple[Sampler, float, bool], ...] = (
    ("ddpm", 1.0, True), ("ddim", 0.8, True), ("euler", 1.2, True), ("dpmpp_2m", 0.6, True),
    ("euler_ancestral", 1.4, True), ("ddim", 2.0, False), ("dpmpp_2m", 2.0, False), ("ddpm", 1.0, True),
)  # fmt: skip


def events(family: Family, load: Load, *, watched: bool = False) -> Iterator[Event]:
    """Yield our engine's events until every user's latents are done. Raises RuntimeError if a job fails."""
    engine = Engine({family.name: family}, rows=load.rows)
    for job in load.jobs(family):
        engine.add(job, (), read(job.task, brought.blobs(), family) if isinstance(job.task, Recipe) else None)
        engine.watch(job.id, watched)
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise RuntimeError(event.reason)
            yield event


def serve_together(family: Family, load: Load) -> float:
    """Return the seconds in which our engine finishes and decodes all users' pictures."""
    begun, pictures = time.perf_counter(), 0
    for event in events(family, load):
        if isinstance(event, Developed):
            family.decode(event.latents)
            pictures += 1
    took = time.perf_counter() - begun
    if not 0 < pictures == load.users * load.count:
        raise RuntimeError(f"{pictures} pictures were finished, not {load.users * load.count}: there is no figure")
    return took


def serve_in_turn(pipeline: Any, family: Family, load: Load) -> float:
    """Return the seconds in which the diffusers pipeline runs the same jobs, one after another."""
    begun = time.perf_counter()
    for job in load.jobs(family):
        call(pipeline, job)
    return time.perf_counter() - begun


def call(pipeline: Any, job: Job, **extra: Any) -> Any:
    """Run the unmodified pipeline on one job's recipe, with the same seeds as ours."""
    recipe = job.task
    assert isinstance(recipe, Recipe)
    seeds = range(recipe.seed, recipe.seed + recipe.count)
    return pipeline(
        recipe.concepts[0].text, num_inference_steps=recipe.steps, guidance_scale=recipe.guidance,
        num_images_per_prompt=recipe.count, generator=[torch.Generator().manual_seed(seed) for seed in seeds], **extra,
    ).images  # fmt: skip


def cast(pipeline: Any, dtype: Dtype) -> Any:
    return pipeline.to(TORCH[dtype])
