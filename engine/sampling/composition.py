"""Composes several steps of a plan into one row with one evaluation of the network.

Between two evaluations the network's estimate x0 is assumed instead of asked for, and a step is arithmetic: with
out = (x0 - P·x)/Q it is linear in what the row began with. So a run of steps is again a row of the table

    x' = A·x + B·out + M·h + N·noise,    h' = x0

whose h is x0 at the evaluation before, and whose noise is the sum of its steps' draws, each with its share.

First the row holds x0, as it was at its evaluation. In a chain with all of its noise that is the best estimate: the
mean of the clean picture given x does not drift. The next evaluation shows how far x0 has gone, and the next row
begins with what these steps would have given had x0 gone there evenly (as a corrector does: Zhao et al. 2023, "UniPC").
That is linear, too: x + C·(x0 - h), where C says how the row's end follows a change of x0 that grows evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from engine.sampling.table import COLUMNS, Plan

_X, _OUT, _H = np.eye(3)  # what a row begins with, as the basis of all that it computes


@lru_cache(maxsize=64)
def compose(plan: Plan, evaluated_steps: tuple[int, ...], borders: tuple[int, ...] = ()) -> Plan:
    """Return the plan with an evaluation only at these steps, the first of which is 0. It makes the same draws.

    `borders`: steps at which the network is asked for something else than before, so that x0 jumps. Raises ValueError
    where a step cannot do without its evaluation.
    """
    rows: list[_Row] = []
    for first_step, end_step in pairwise((*evaluated_steps, plan.steps)):
        previous = rows[-1] if rows and first_step not in borders else None
        rows.append(_compose_row(plan, first_step, end_step, previous))
    table = plan.table[list(evaluated_steps)].copy()
    table[:, [COLUMNS.index(name) for name in "ABMN"]] = [(*row.coefficients, row.noise) for row in rows]
    table.setflags(write=False)
    return Plan(
        table,
        plan.init_sigma,
        tuple(plan.draw_counts[step] for step in (*evaluated_steps, plan.steps)),
        (*evaluated_steps, plan.steps),
        tuple(row.draw_weights for row in rows),
    )


@dataclass(frozen=True)
class _Row:
    """One row: its coefficients (A, B, M), its N, the shares of its draws, its number of steps, and its C."""

    coefficients: np.ndarray
    noise: float
    draw_weights: tuple[float, ...]
    step_count: int
    correction: float


def _compose_row(plan: Plan, first_step: int, end_step: int, previous: _Row | None) -> _Row:
    """Follow the steps from `first_step` to before `end_step` with x0 as it is at the first.

    `previous`: the row whose x0 went evenly to this one's; None: it stayed.
    """
    p, q = _read_columns(plan, first_step, "PQ")
    x = _X
    x0 = p * _X + q * _OUT
    last_x0 = _H  # x0 at the step before, for multistep samplers
    if previous is not None:
        x = x + previous.correction * (x0 - _H)
        last_x0 = _H + (previous.step_count - 1) / previous.step_count * (x0 - _H)
    correction = 0.0
    last_share = 0.0
    draws: list[float] = []
    for k in range(first_step, end_step):
        share = (k - first_step) / (end_step - first_step)
        kept, new = _write_as_x0(plan, k)
        (m, n) = _read_columns(plan, k, "MN")
        x = kept * x + new * x0 + m * last_x0
        correction = kept * correction + new * share + m * last_share
        draws = [kept * weight for weight in draws]
        if plan.has_noise_draw(k):
            draws.append(n)
        last_x0 = x0
        last_share = share
    noise = float(np.linalg.norm(draws)) if draws else 0.0
    shares = tuple(weight / noise for weight in draws) if noise else tuple(0.0 for _ in draws)
    return _Row(x, noise, shares, end_step - first_step, correction)


def _write_as_x0(plan: Plan, k: int) -> tuple[float, float]:
    """Return step `k` as coefficients of x and x0, since A·x + B·out = (A - B·P/Q)·x + (B/Q)·x0."""
    a, b, p, q = _read_columns(plan, k, "ABPQ")
    if q == 0.0 and b != 0.0:
        raise ValueError(f"step {k} needs the network's output beside x0")
    ratio = b / q if b else 0.0
    return a - ratio * p, ratio


def _read_columns(plan: Plan, k: int, names: str) -> Iterator[float]:
    return (float(plan.table[k, COLUMNS.index(name)]) for name in names)
