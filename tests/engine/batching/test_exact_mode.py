"""Exact mode on the embedded model: the pinned batch shape makes every bit a function of the recipe alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.batching.engine import Engine, LatentsDone
from engine.contract import Job, NoiseAncestor
from engine.models.families.stable_diffusion import StableDiffusion

Make = Callable[..., Any]


@pytest.fixture
def exact_recipe(recipe: Make) -> Make:
    def make(text: str = "a red cat", **fields: Any) -> Any:
        defaults: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "bucket": 4}
        return recipe(text, **(defaults | fields))

    return make


def run_alone(embedded: StableDiffusion, one: Job, finish: Make) -> torch.Tensor:
    engine = Engine({"embedded": embedded})
    engine.add(one)
    return finish(engine)[one.id, 0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", [1, 2])
def test_other_jobs_in_the_batch_change_no_bit(
    embedded: StableDiffusion, exact_recipe: Make, job: Make, finish: Make, dtype: str, seed: int
) -> None:
    rng = random.Random(seed)
    one = job(exact_recipe(steps=14, dtype=dtype))
    expected = run_alone(embedded, one, finish)
    engine = Engine({"embedded": embedded})
    other_jobs = []
    latents = None
    for round_number in range(40):
        if rng.random() < 0.5:
            other_jobs.append(
                job(
                    exact_recipe(
                        rng.choice(["a dog", "a tree"]),
                        steps=rng.randint(1, 9),
                        count=rng.randint(1, 2),
                        sampler=rng.choice(["ddpm", "dpmpp_2m"]),
                        dtype=dtype,
                    )
                )
            )
            engine.add(other_jobs[-1])
        if round_number == 3:
            engine.add(one)
        if other_jobs and rng.random() < 0.3:
            engine.cancel(rng.choice(other_jobs).id)
        for event in engine.step():
            if isinstance(event, LatentsDone) and event.job == one.id:
                latents = event.latents
        if latents is not None:
            break
    assert latents is not None
    assert torch.equal(latents, expected)


@pytest.mark.sampled
@pytest.mark.parametrize(("steps", "evaluations"), [(12, 0), (60, 12)])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_job_killed_and_resumed_several_times_gives_the_same_picture(
    embedded: StableDiffusion, exact_recipe: Make, job: Make, finish: Make, sampler: str, steps: int, evaluations: int
) -> None:
    lineage = (NoiseAncestor(3, 0, 0.3),)
    one = job(exact_recipe(steps=steps, evaluations=evaluations, sampler=sampler, lineage=lineage))
    expected = run_alone(embedded, one, finish)
    snapshots: list[Any] = []
    for steps_run in (3, 4, 2):
        engine = Engine({"embedded": embedded})
        engine.add(one, snapshots)
        for _ in range(steps_run):
            engine.step()
        snapshots = engine.take_snapshots(one.id, epoch=1)
    engine = Engine({"embedded": embedded})
    engine.add(one, snapshots)
    assert torch.equal(finish(engine)[one.id, 0], expected)
