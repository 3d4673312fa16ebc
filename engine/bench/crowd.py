"""Eight users at once on the embedded model: our engine, and what they would run instead. Only loads and clocks.

The rival is the unmodified `StableDiffusionPipeline` on the same weights and threads, one job after another, decoding
included: as diffusers runs it by default (float32, eager), and in our dtype.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.calibration import probe
from engine.engine import Developed, Engine, Failed, Stepped
from engine.families.family import TORCH, Family
from engine.job import Concept, Dtype, Job, Recipe, Share

USERS = 8
PROMPTS = ("red apple", "blue car", "cat face", "green tree", "pizza", "rocket", "yellow star", "purple octopus")
DEADLINE = 4e9  # far away: nothing here expires


@dataclass(frozen=True)
class Load:
    """`steps` of DDPM for each of eight users, one picture each, at the family's default guidance."""

    steps: int
    dtype: Dtype

    def jobs(self, family: Family) -> list[Job]:
        return [self._job(family, number, prompt) for number, prompt in enumerate(PROMPTS)]

    def _job(self, family: Family, number: int, prompt: str) -> Job:
        recipe = Recipe(
            concepts=(Concept(prompt),), model=family.name, sampler="ddpm", steps=self.steps, seed=number,
            guidance=family.guidance, width=family.size, height=family.size, count=1, dtype=self.dtype,
        )  # fmt: skip
        share = Share("standard", "bench", f"user-{number}")
        return Job(id=f"{number:026d}", task=recipe, share=share, cost=1.0, deadline=DEADLINE, ladder=False)


def serve_together(family: Family, load: Load) -> float:
    """Seconds until our engine has developed and decoded everybody's picture."""
    begun = time.perf_counter()
    engine = Engine({family.name: family})
    for job in load.jobs(family):
        engine.add(job)
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise RuntimeError(event.reason)
            if isinstance(event, Developed):
                family.decode(event.latents)
    return time.perf_counter() - begun


def serve_in_turn(pipeline: Any, family: Family, load: Load) -> float:
    """Seconds until the pipeline has done the same, one job after another."""
    begun = time.perf_counter()
    for job in load.jobs(family):
        call(pipeline, job)
    return time.perf_counter() - begun


def previews_together(family: Family, load: Load) -> list[float]:
    """Seconds until each user sees the decoded preview at 10 % of the steps, ours."""
    begun, seen = time.perf_counter(), dict[str, float]()
    engine = Engine({family.name: family})
    for job in load.jobs(family):
        engine.add(job)
        engine.watch(job.id)
    while len(seen) < USERS:
        for event in engine.step():
            if not isinstance(event, Stepped) or event.x0 is None or event.k < load.steps / 10:
                continue
            if event.job not in seen:
                family.decode(event.x0)
                seen[event.job] = time.perf_counter() - begun
    return sorted(seen.values())


def previews_in_turn(pipeline: Any, family: Family, load: Load) -> list[float]:
    """The same for the pipeline: its step callback decodes at 10 %, and whoever comes later waits for whole jobs."""
    begun, seen = time.perf_counter(), list[float]()

    def look(_: Any, k: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
        if k + 1 == max(1, load.steps // 10):
            family.decode(state["latents"][0].float())
            seen.append(time.perf_counter() - begun)
        return state

    for job in load.jobs(family):
        call(pipeline, job, callback_on_step_end=look)
    return sorted(seen)


def call(pipeline: Any, job: Job, **extra: Any) -> Any:
    """The unmodified pipeline on one job's recipe; the same seed as ours."""
    recipe = job.task
    assert isinstance(recipe, Recipe)
    return pipeline(
        recipe.concepts[0].text, num_inference_steps=recipe.steps, guidance_scale=recipe.guidance,
        generator=[torch.Generator().manual_seed(recipe.seed)], **extra,
    ).images  # fmt: skip


def network_gain(family: Family, dtype: Dtype, rounds: int = 15) -> float:
    """How much faster the bare network takes sixteen rows at once than two at a time: the ceiling of any batching."""
    few, many = (_forward(family, rows, dtype) for rows in (2, 2 * USERS))
    times = [(_clock(few), _clock(many)) for _ in range(rounds + 2)][2:]  # the first two warm the caches
    return USERS * _median([each for each, _ in times]) / _median([each for _, each in times])


def _forward(family: Family, rows: int, dtype: Dtype) -> Callable[[], object]:
    shape = family.latent_shape(family.size, family.size)
    x, t = torch.randn(rows, *shape), torch.full((rows,), 500.0)
    texts = tuple(part.expand(rows, *part.shape) for part in family.condition("cat", probe(family)))

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return family.denoise(x, t, texts, dtype)

    return forward


def _clock(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def cast(pipeline: Any, dtype: Dtype) -> Any:
    return pipeline.to(TORCH[dtype])
