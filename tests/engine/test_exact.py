"""Exact mode on the embedded model: the pinned batch shape makes every bit a function of the recipe alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.engine import Developed, Engine
from engine.families.stable_diffusion import StableDiffusion
from engine.job import Ancestor, Job

Make = Callable[..., Any]


@pytest.fixture
def exact(recipe: Make) -> Make:
    def make(text: str = "a red cat", **fields: Any) -> Any:
        defaults: dict[str, Any] = {"model": "embedded", "guidance": 3.5, "width": 64, "height": 64, "bucket": 4}
        return recipe(text, **(defaults | fields))

    return make


def alone(embedded: StableDiffusion, one: Job, finish: Make) -> torch.Tensor:
    engine = Engine({"embedded": embedded})
    engine.add(one)
    return finish(engine)[one.id, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", [1, 2])
def test_mates_that_come_and_go_change_no_bit(
    embedded: StableDiffusion, exact: Make, job: Make, finish: Make, dtype: str, seed: int
) -> None:
    luck = random.Random(seed)
    one = job(exact(steps=14, dtype=dtype))
    expected = alone(embedded, one, finish)
    engine, mates, latents = Engine({"embedded": embedded}), [], None
    for turn in range(40):
        if luck.random() < 0.5:
            mates.append(job(exact(luck.choice(["a dog", "a tree"]), steps=luck.randint(1, 9), count=luck.randint(1, 2),
                                   sampler=luck.choice(["ddpm", "dpmpp_2m"]), dtype=dtype)))  # fmt: skip
            engine.add(mates[-1])
        if turn == 3:
            engine.add(one)
        if mates and luck.random() < 0.3:
            engine.cancel(luck.choice(mates).id)
        for event in engine.step():
            if isinstance(event, Developed) and event.job == one.id:
                latents = event.latents
        if latents is not None:
            break
    assert latents is not None
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_killed_and_resumed_again_and_again_it_is_the_same_picture(
    embedded: StableDiffusion, exact: Make, job: Make, finish: Make, sampler: str
) -> None:
    one = job(exact(steps=12, sampler=sampler, lineage=(Ancestor(3, 0, 0.3),)))
    expected = alone(embedded, one, finish)
    snapshots: list[Any] = []
    for steps in (3, 4, 2):
        engine = Engine({"embedded": embedded})
        engine.add(one, snapshots)
        for _ in range(steps):
            engine.step()
        snapshots = engine.snapshots(one.id, epoch=1)
    engine = Engine({"embedded": embedded})
    engine.add(one, snapshots)
    assert torch.equal(finish(engine)[one.id, 0], expected)
