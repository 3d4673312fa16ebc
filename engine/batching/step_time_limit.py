"""Limits a batch so that no user's steps take longer than if users took turns on the whole device.

A batch takes as long as all of its rows, so one user's many rows would slow another's few. Suppose a user's own rows
take t alone. With a share s of the device, a step takes t/s on average: the user's *allowance*. Time that a step saves
is kept for larger batches, which give more rows a second. Users of equal demand never meet the limit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

MIN_THROUGHPUT_SHARE = 0.85  # share of a full batch's rows a second that is kept

ForwardTimes = Mapping[int, float]


@dataclass(frozen=True)
class Demand:
    """The rows of one user in a group, and that user's share of the group's device time."""

    user: Hashable
    rows: int
    share: float


class StepTimeLimiter:
    """The state of one group. `limit_rows` proposes a limit; `charge` counts the rows that have run."""

    def __init__(self) -> None:
        self._saved_ms: dict[Hashable, float] = {}  # milliseconds; negative: a debt
        self._step_budgets: dict[Hashable, tuple[int, float]] = {}  # (rows, milliseconds) of the last proposal
        self._forward_times: ForwardTimes = {}
        self._full_batch_ms = 0.0

    def limit_rows(self, demands: Sequence[Demand], limit: int, forward_times: ForwardTimes) -> int:
        """Return the most rows of the next batch, at most `limit`."""
        self._step_budgets = {}
        self._forward_times = forward_times
        if len(demands) < 2 or not forward_times:
            return limit
        full_rows = min(limit, sum(demand.rows for demand in demands))
        self._full_batch_ms = forward_ms(forward_times, full_rows)
        self._step_budgets = {
            each.user: (min(each.rows, full_rows), forward_ms(forward_times, min(each.rows, full_rows)) / each.share)
            for each in demands
        }
        limited_users = {
            user for user, (_, allowance) in self._step_budgets.items() if allowance < self._full_batch_ms * (1 - 1e-9)
        }
        if not limited_users:
            return limit
        min_rows = 1 + sum(self._step_budgets[user][0] for user in limited_users)
        sizes = efficient_sizes(forward_times, min_rows, full_rows)
        efficient_time = efficient_ms(forward_times, sizes)
        for user in limited_users:
            rows, allowance = self._step_budgets[user]
            self._step_budgets[user] = rows, max(allowance, efficient_time)
        available_ms = min(self._step_budgets[user][1] + self._saved_ms.get(user, 0.0) for user in limited_users)
        return max((size for size in sizes if forward_ms(forward_times, size) <= available_ms), default=sizes[0])

    def charge(self, rows: Mapping[Hashable, int]) -> None:
        """Account for the rows of each user that ran in one batch."""
        batch_ms = forward_ms(self._forward_times, sum(rows.values())) if self._step_budgets else 0.0
        balances: dict[Hashable, float] = {}
        for user, (user_rows, allowance) in self._step_budgets.items():
            balance = self._saved_ms.get(user, 0.0) + allowance * rows.get(user, 0) / user_rows - batch_ms
            balances[user] = max(-self._full_batch_ms, min(self._full_batch_ms, balance))
        self._saved_ms = balances
        self._step_budgets = {}


def forward_ms(forward_times: ForwardTimes, rows: int) -> float:
    """Return the milliseconds for these rows: of the next timed size; beyond the largest, of several forwards."""
    largest = max(forward_times)
    full_forwards, rest_rows = divmod(rows, largest)
    return full_forwards * forward_times[largest] + (
        forward_times[min(size for size in forward_times if size >= rest_rows)] if rest_rows else 0.0
    )


def efficient_sizes(forward_times: ForwardTimes, min_rows: int, max_rows: int) -> list[int]:
    """Return the sizes from at least `min_rows` rows to `max_rows` that no mixture of two others beats."""
    sizes = sorted({min(size, max_rows) for size in forward_times if size >= min_rows} | {max_rows})
    hull: list[int] = []
    for size in sizes:
        while len(hull) > 1 and _marginal_throughput(forward_times, hull[-2], hull[-1]) <= _marginal_throughput(
            forward_times, hull[-1], size
        ):
            hull.pop()
        hull.append(size)
    return hull


def efficient_ms(forward_times: ForwardTimes, sizes: Sequence[int]) -> float:
    """Return the shortest mean time of mixed efficient sizes.

    They must give at least `MIN_THROUGHPUT_SHARE` of the largest size's rows a millisecond.
    """
    min_throughput = MIN_THROUGHPUT_SHARE * sizes[-1] / forward_ms(forward_times, sizes[-1])
    smaller_size = sizes[0]
    for larger_size in sizes[1:]:
        if smaller_size / forward_ms(forward_times, smaller_size) >= min_throughput:
            break
        if larger_size / forward_ms(forward_times, larger_size) >= min_throughput:
            marginal = _marginal_throughput(forward_times, smaller_size, larger_size)
            return (marginal * forward_ms(forward_times, smaller_size) - smaller_size) / (marginal - min_throughput)
        smaller_size = larger_size
    return forward_ms(forward_times, smaller_size)


def _marginal_throughput(forward_times: ForwardTimes, few: int, many: int) -> float:
    """Return rows a millisecond that the larger batch adds."""
    return (many - few) / max(forward_ms(forward_times, many) - forward_ms(forward_times, few), 1e-9)
