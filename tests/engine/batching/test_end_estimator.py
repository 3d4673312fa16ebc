"""Previews of the likely end by a turbo LoRA: shown while the noise is high, and never part of a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from engine.batching.engine import Engine, LatentsDone, StepDone
from engine.models import load_folder
from shared.small_families import build_recipe, write_turbo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
Run = tuple[dict[int, torch.Tensor], list[torch.Tensor | None]]


@pytest.fixture(scope="module")
def turbo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "sd"
    save_small_pipeline("sd", folder)
    write_turbo(folder, load_folder(str(folder), "sd").pipeline)  # pyright: ignore[reportAttributeAccessIssue]
    return folder


@pytest.fixture
def family(turbo_folder: Path) -> Any:
    return load_folder(str(turbo_folder), "sd")


def count_lora_forwards(family: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the rows of each forward with a LoRA."""
    rows = list[int]()
    denoise = family.denoise

    def record(x: torch.Tensor, t: torch.Tensor, conditioning: Any, dtype: Any, loras: Any = ()) -> torch.Tensor:
        if loras:
            rows.append(len(x))
        return denoise(x, t, conditioning, dtype, loras)

    monkeypatch.setattr(family, "denoise", record)
    return rows


def run(family: Any, *jobs: Any) -> Run:
    """Runs jobs, the first of which is watched; returns its latents, and its first image's previews."""
    engine = Engine({family.name: family})
    for job in jobs:
        engine.add(job)
    engine.watch(jobs[0].id)
    latents = dict[int, torch.Tensor]()
    previews = list[torch.Tensor | None]()
    while not engine.is_idle:
        for event in engine.step():
            if event.job == jobs[0].id and isinstance(event, LatentsDone):
                latents[event.image] = event.latents
            elif event.job == jobs[0].id and isinstance(event, StepDone) and event.image == 0:
                previews.append(event.x0)
    return latents, previews


def changed_steps(one: Run, other: Run) -> list[int]:
    return [
        step
        for step, (x0, other_x0) in enumerate(zip(one[1], other[1], strict=True), 1)
        if x0 is not None and other_x0 is not None and not torch.equal(x0, other_x0)
    ]


def test_early_previews_show_the_likely_end_and_the_picture_stays_the_same(
    family: Any, turbo_folder: Path, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = job(build_recipe(recipe, family, steps=60, count=2))
    rows = count_lora_forwards(family, monkeypatch)
    with_turbo = run(family, each)
    assert rows == [2], "one forward for both images"
    family.model_folder = None
    without = run(family, each)
    assert rows == [2]
    assert changed_steps(with_turbo, without) == list(range(2, 21))
    assert all(torch.equal(with_turbo[0][image], without[0][image]) for image in (0, 1))
    first, *others = with_turbo[1][1:20]
    assert first is not None
    assert all(other is first for other in others), "the estimate stays until x0 shows more"


@pytest.mark.parametrize(
    ("steps", "estimate_count"),
    [(49, 0), (50, 1), pytest.param(120, 2, marks=pytest.mark.slow), pytest.param(400, 3, marks=pytest.mark.slow)],
)
def test_a_job_has_an_estimate_for_every_fifty_steps_and_at_most_three(
    family: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch, steps: int, estimate_count: int
) -> None:
    rows = count_lora_forwards(family, monkeypatch)
    run(family, job(build_recipe(recipe, family, steps=steps, count=1)))
    assert rows == [1] * estimate_count


def test_an_estimate_never_delays_other_jobs(
    family: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = count_lora_forwards(family, monkeypatch)
    run(family, *(job(build_recipe(recipe, family, steps=60, count=1)) for _ in range(2)))
    assert rows == []


def test_an_unwatched_job_has_no_estimate(
    family: Any, recipe: Make, job: Make, finish: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = count_lora_forwards(family, monkeypatch)
    engine = Engine({family.name: family})
    engine.add(job(build_recipe(recipe, family, steps=60, count=1)))
    finish(engine)
    assert rows == []


@pytest.mark.slow
def test_a_failed_estimate_costs_its_previews_alone(
    family: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # two estimates
    each = job(build_recipe(recipe, family, steps=120, count=1))
    denoise = family.denoise

    def fail(x: torch.Tensor, t: torch.Tensor, conditioning: Any, dtype: Any, loras: Any = ()) -> torch.Tensor:
        if loras:
            raise RuntimeError("the LoRA is broken")
        return denoise(x, t, conditioning, dtype, loras)

    monkeypatch.setattr(family, "denoise", fail)
    failed = run(family, each)
    assert caplog.text.count("no previews of the likely end") == 1
    family.model_folder = None
    assert changed_steps(failed, run(family, each)) == []


def test_a_step_with_an_estimate_is_no_measurement(family: Any, recipe: Make, job: Make) -> None:
    each = job(build_recipe(recipe, family, steps=50, count=1))
    engine = Engine({family.name: family})
    engine.add(each)
    engine.watch(each.id)
    batches = [(engine.step(), engine.last_batch)[1] for _ in range(4)]
    assert [batch is None for batch in batches] == [False, True, False, False]
