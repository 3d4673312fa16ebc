"""Limits a batch so that no user's steps take longer than if users took turns on the whole device.

A batch takes as long as all of its rows, so one user's many rows would slow another's few. Suppose a user's own rows
take t alone. With a share s of the device, a step takes t/s on average: the user's *allowance*. Time that a step saves
is kept for larger batches, which give more rows a second. Users of equal demand never meet the limit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

KEPT = 0.85  # share of a full batch's rows a second that is kept

Times = Mapping[int, float]


@dataclass(frozen=True)
class Demand:
    """The rows of one user in a group, and that user's share of the group's device time."""

    user: Hashable
    rows: int
    share: float


class Patience:
    """The state of one group. `bound` proposes and changes nothing; `charge` counts what has run."""

    def __init__(self) -> None:
        self._saved: dict[Hashable, float] = {}  # milliseconds; negative: a debt
        self._allowances: dict[Hashable, tuple[int, float]] = {}  # (rows, milliseconds) of the last proposal
        self._times: Times = {}
        self._full = 0.0

    def bound(self, demands: Sequence[Demand], limit: int, times: Times) -> int:
        """Return the most rows of the next batch, at most `limit`."""
        self._allowances, self._times = {}, times
        if len(demands) < 2 or not times:
            return limit
        full = min(limit, sum(each.rows for each in demands))
        self._full = forward_ms(times, full)
        self._allowances = {
            each.user: (min(each.rows, full), forward_ms(times, min(each.rows, full)) / each.share) for each in demands
        }
        tight = {user for user, (_, allowance) in self._allowances.items() if allowance < self._full * (1 - 1e-9)}
        if not tight:
            return limit
        least = 1 + sum(self._allowances[user][0] for user in tight)
        sizes = efficient_sizes(times, least, full)
        frugal = frugal_ms(times, sizes)
        for user in tight:
            rows, allowance = self._allowances[user]
            self._allowances[user] = rows, max(allowance, frugal)
        room = min(self._allowances[user][1] + self._saved.get(user, 0.0) for user in tight)
        return max((size for size in sizes if forward_ms(times, size) <= room), default=sizes[0])

    def charge(self, rows: Mapping[Hashable, int]) -> None:
        """Account for the rows of each user that ran in one batch."""
        took = forward_ms(self._times, sum(rows.values())) if self._allowances else 0.0
        saved: dict[Hashable, float] = {}
        for user, (wanted, allowance) in self._allowances.items():
            left = self._saved.get(user, 0.0) + allowance * rows.get(user, 0) / wanted - took
            saved[user] = max(-self._full, min(self._full, left))
        self._saved, self._allowances = saved, {}


def forward_ms(times: Times, rows: int) -> float:
    """Return the milliseconds for these rows: of the next timed size; beyond the largest, of several forwards."""
    largest = max(times)
    whole, rest = divmod(rows, largest)
    return whole * times[largest] + (times[min(size for size in times if size >= rest)] if rest else 0.0)


def efficient_sizes(times: Times, least: int, full: int) -> list[int]:
    """Return the sizes from at least `least` rows to `full` that no mixture of two others beats."""
    sizes = sorted({min(size, full) for size in times if size >= least} | {full})
    hull: list[int] = []
    for size in sizes:
        while len(hull) > 1 and _gain(times, hull[-2], hull[-1]) <= _gain(times, hull[-1], size):
            hull.pop()
        hull.append(size)
    return hull


def frugal_ms(times: Times, sizes: Sequence[int]) -> float:
    """Return the shortest mean time of mixed efficient sizes with `KEPT` of the largest's rows a millisecond."""
    wanted = KEPT * sizes[-1] / forward_ms(times, sizes[-1])
    few = sizes[0]
    for many in sizes[1:]:
        if few / forward_ms(times, few) >= wanted:
            break
        if many / forward_ms(times, many) >= wanted:
            gain = _gain(times, few, many)
            return (gain * forward_ms(times, few) - few) / (gain - wanted)
        few = many
    return forward_ms(times, few)


def _gain(times: Times, few: int, many: int) -> float:
    """Return rows a millisecond that the larger batch adds."""
    return (many - few) / max(forward_ms(times, many) - forward_ms(times, few), 1e-9)
