"""A composed row against its steps, one after another, in double precision."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling import COLUMNS, TABLED, Plan, compose, plan
from shared.scheduler_trajectories import EPSILON, SD3, VELOCITY, affine_network

SHAPE = (1, 4, 4, 4)
CONFIGS = {"epsilon": EPSILON, "v": VELOCITY, "flow": SD3}
FLOW_SAMPLERS = ("euler", "dpmpp_2m")


def draw_noises(sampler_plan: Plan) -> dict[int, torch.Tensor]:
    """Returns each step's noise, drawn in order."""
    generator = torch.Generator().manual_seed(3)
    steps = [step for step in range(sampler_plan.steps) if sampler_plan.has_noise_draw(step)]
    return {step: torch.randn(SHAPE, generator=generator, dtype=torch.float64) for step in steps}


def coefficients_of(sampler_plan: Plan, step: int) -> dict[str, float]:
    return dict(zip(COLUMNS, sampler_plan.coefficients_at(step).tolist(), strict=True))


class StepByStep:
    """The full plan with x0 assumed between evaluations: the latents that the network sees at each evaluation."""

    def __init__(self, full: Plan, evaluated: tuple[int, ...], borders: tuple[int, ...], start: torch.Tensor) -> None:
        self.full = full
        self.noises = draw_noises(full)
        self.seen = list[torch.Tensor]()
        x = start
        last_x0 = torch.zeros(SHAPE, dtype=torch.float64)
        x0: torch.Tensor | None = None
        begun = x, last_x0, 0
        for first, end in pairwise((*evaluated, full.steps)):
            new_x0 = self._evaluate(x, first)
            if x0 is not None and first not in borders:  # go these steps once more: x0 went evenly to the new one
                x, last_x0 = self._run(*begun, first, x0, new_x0)
            x0 = new_x0
            begun = (x, last_x0, first)
            x, last_x0 = self._run(x, last_x0, first, end, x0, x0)
        self.end = x

    def _evaluate(self, x: torch.Tensor, step: int) -> torch.Tensor:
        self.seen.append(x)
        row = coefficients_of(self.full, step)
        return row["P"] * x + row["Q"] * affine_network(row["c"] * x, row["t"])

    def _run(
        self, x: torch.Tensor, last_x0: torch.Tensor, first: int, end: int, x0: torch.Tensor, next_x0: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for step in range(first, end):
            row = coefficients_of(self.full, step)
            assumed = x0 + (next_x0 - x0) * (step - first) / (end - first)
            out = (assumed - row["P"] * x) / row["Q"]
            noise = self.noises.get(step, torch.zeros(()))
            x = row["A"] * x + row["B"] * out + row["M"] * last_x0 + row["N"] * noise
            last_x0 = assumed
        return x, last_x0


def run_composed(composed: Plan, full: Plan, start: torch.Tensor) -> list[torch.Tensor]:
    """Returns the latents before each row, and at the end."""
    noises = iter(draw_noises(full).values())
    x = start
    h = torch.zeros(SHAPE, dtype=torch.float64)
    seen = list[torch.Tensor]()
    for step in composed.row_steps[:-1]:
        seen.append(x)
        row = coefficients_of(composed, step)
        positions, weights = composed.draws_at(step)
        noise = sum((weight * next(noises) for _, weight in zip(positions, weights, strict=True)), torch.zeros(SHAPE))
        out = affine_network(row["c"] * x, row["t"])
        x, h = row["A"] * x + row["B"] * out + row["M"] * h + row["N"] * noise, row["P"] * x + row["Q"] * out
    return [*seen, x]


@st.composite
def choose_compositions(draw: st.DrawFn) -> tuple[Any, ...]:
    name = draw(st.sampled_from(sorted(CONFIGS)))
    sampler = draw(st.sampled_from(FLOW_SAMPLERS if name == "flow" else TABLED))
    steps = draw(st.integers(4, 40))
    inner = draw(st.sets(st.integers(1, steps - 2), max_size=steps - 2)) if steps > 2 else set[int]()
    evaluated = tuple(sorted({0, steps - 1, *inner}))
    borders = tuple(sorted(draw(st.sets(st.sampled_from(evaluated[1:]), max_size=2))))
    return name, sampler, steps, evaluated, borders, draw(st.sampled_from((0.0, 0.5, 1.0)))


@settings(max_examples=60, deadline=None)
@given(choose_compositions())
def test_a_composed_row_equals_its_steps_one_after_another(choice: tuple[Any, ...]) -> None:
    name, sampler, steps, evaluated, borders, eta = choice
    full = plan(CONFIGS[name], sampler, steps, eta)
    composed = compose(full, evaluated, borders)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * full.init_sigma
    expected = StepByStep(full, evaluated, borders, start)
    for actual, latents in zip(run_composed(composed, full, start), [*expected.seen, expected.end], strict=True):
        torch.testing.assert_close(actual, latents, rtol=1e-6, atol=1e-6 * float(latents.abs().max()))


def test_a_thousand_steps_of_ddpm_in_a_hundred_rows() -> None:
    full = plan(EPSILON, "ddpm", 1000)
    evaluated = (*range(0, 1000, 10), 999)
    composed = compose(full, evaluated)
    start = torch.ones(SHAPE, dtype=torch.float64)
    expected = StepByStep(full, evaluated, (), start)
    actual = run_composed(composed, full, start)
    assert float((actual[-1] - expected.end).abs().max() / expected.end.abs().max()) <= 1e-6
    assert len(composed.table) == 101
    assert composed.draw_counts[-1] == full.draw_counts[-1], "it makes the same draws"


@pytest.mark.parametrize("sampler", TABLED)
def test_a_plan_with_all_evaluations_is_the_plan_itself(sampler: str) -> None:
    full = plan(EPSILON, sampler, 12)
    composed = compose(full, tuple(range(12)))
    a, b, m = (COLUMNS.index(name) for name in "ABM")
    np.testing.assert_allclose(composed.table[:, [a, b, m]], full.table[:, [a, b, m]], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.abs(composed.table), np.abs(full.table), rtol=1e-9, atol=1e-12)
    assert not composed.is_composed


def test_an_estimate_that_does_not_drift_needs_no_correction() -> None:
    """Where x0 stays, neither the rows nor the corrections may move it: the last latents are x0."""
    full = plan(EPSILON, "ddim", 50)
    composed = compose(full, tuple(range(0, 50, 7)))
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h = x0
    for step in composed.row_steps[:-1]:
        row = coefficients_of(composed, step)
        out = (x0 - row["P"] * x) / row["Q"]
        x = row["A"] * x + row["B"] * out + row["M"] * h
    torch.testing.assert_close(x, x0, rtol=1e-2, atol=2e-2)  # the last level still has a little noise


def test_steps_are_found_by_the_rows_that_begin_there() -> None:
    full = plan(EPSILON, "ddpm", 20)
    composed = compose(full, (0, 4, 5, 12, 19))
    assert [composed.next_step(step) for step in (0, 4, 5, 12, 19)] == [4, 5, 12, 19, 20]
    assert [step for step in range(22) if composed.begins_row(step)] == [0, 4, 5, 12, 19, 20]
    assert composed.noise_level(12) == full.noise_level(12)
    assert composed.draw_count_at(12) == full.draw_count_at(12)
    with pytest.raises(ValueError, match="no row of the plan begins at step 6"):
        composed.next_step(6)
    later = composed.starting_at(5)
    assert later.draw_count_at(5) == 1
    assert later.coefficients_at(5)[COLUMNS.index("M")] == 0.0
