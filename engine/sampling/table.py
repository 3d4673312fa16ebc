"""`Plan`: a sampler's table of coefficients, by row and by step. Immutable."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

COLUMNS = ("t", "c", "A", "B", "M", "N", "P", "Q", "alpha", "sigma")


@dataclass(frozen=True, eq=False)
class Plan:
    """`table[r]` holds the coefficients of row `r`, in the order of `COLUMNS` (float64, `[rows, 10]`).

    A row is one step of the chain, or several steps with one evaluation of the network (`compose`). Row `r` takes
    an image from step `row_steps[r]` to step `row_steps[r + 1]`; the last of these is the number of steps.

    `alpha, sigma` are the noise level at which a row predicts: x = alpha·x0 + sigma·eps. `init_sigma` scales the first
    draw. `draw_counts[r]` is how many noise draws come before row `r`'s own, the initial latents being the first; the
    last is their total. A draw may count but add nothing (Euler ancestral's last), and a step may draw none (LCM's and
    DDPM's last). `draw_weights[r]` are the shares of a composed row's draws in its noise, whose squares sum to 1;
    empty: a row has one draw, or none. `is_composed`: the history is x0 at the evaluation before.
    """

    table: np.ndarray
    init_sigma: float
    draw_counts: tuple[int, ...]
    row_steps: Sequence[int]
    draw_weights: tuple[tuple[float, ...], ...] = ()

    @property
    def steps(self) -> int:
        """The steps of the whole chain."""
        return self.row_steps[-1]

    @property
    def is_composed(self) -> bool:
        """Whether some steps have no evaluation of their own."""
        return len(self.table) < self.steps

    @property
    def has_history(self) -> bool:
        """Whether the previous x0 enters the next row: in multistep samplers, and in composed rows."""
        return bool(self.table[:, COLUMNS.index("M")].any())

    def row_at(self, k: int) -> int:
        """Return the row that begins at step `k`; the number of rows after the last step. Raises ValueError."""
        row = bisect_left(self.row_steps, k)
        if row > len(self.table) or self.row_steps[row] != k:
            raise ValueError(f"no row of the plan begins at step {k}")
        return row

    def begins_row(self, k: int) -> bool:
        """Return whether an image can stand at step `k`."""
        return k in self.row_steps

    def coefficients_at(self, k: int) -> np.ndarray:
        """Return the row of the table that begins at step `k`: `[10]`."""
        return self.table[self.row_at(k)]

    def next_step(self, k: int) -> int:
        """Return the step that the row at step `k` leads to."""
        return self.row_steps[self.row_at(k) + 1]

    def has_noise_draw(self, k: int) -> bool:
        row = self.row_at(k)
        return self.draw_counts[row + 1] > self.draw_counts[row]

    def draw_count_at(self, k: int) -> int:
        """Return how many noise draws come before the row at step `k`."""
        return self.draw_counts[self.row_at(k)]

    def draws_at(self, k: int) -> tuple[range, tuple[float, ...]]:
        """Return the noise draws of the row at step `k` by their positions, and their shares; () for a single one."""
        row = self.row_at(k)
        weights = self.draw_weights[row] if self.draw_weights else ()
        return range(self.draw_counts[row], self.draw_counts[row + 1]), weights

    def noise_level(self, k: int) -> tuple[float, float]:
        """Return (alpha, sigma) before step `k`; after the last step there is no noise."""
        if k >= self.steps:
            return 1.0, 0.0
        alpha, sigma = self.coefficients_at(k)[[COLUMNS.index("alpha"), COLUMNS.index("sigma")]]
        return float(alpha), float(sigma)

    def starting_at(self, first_step: int) -> Plan:
        """Return the plan of an image that starts at `first_step` without history; it counts noise from there."""
        return self.without_history(first_step).with_draw_count(first_step, 1) if first_step else self

    def without_history(self, first_step: int) -> Plan:
        """Return the plan without the history that a multistep sampler uses at `first_step`.

        That step is of first order, as if the previous x0 had been the same: M·h with h = x0 = P·x + Q·out.
        """
        table = self.table.copy()
        row = self.row_at(first_step)
        a, b, m, p, q = (COLUMNS.index(name) for name in "ABMPQ")
        table[row, a] += table[row, m] * table[row, p]
        table[row, b] += table[row, m] * table[row, q]
        table[row, m] = 0.0
        table.setflags(write=False)
        return replace(self, table=table)

    def with_draw_count(self, first_step: int, draw_count: int) -> Plan:
        """Return the plan with `draw_count` noise draws before `first_step`."""
        before = self.draw_count_at(first_step)
        return replace(self, draw_counts=tuple(draw_count + max(0, count - before) for count in self.draw_counts))


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
