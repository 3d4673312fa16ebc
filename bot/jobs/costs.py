"""Costs besides sampling: loading a model, upscales, and work that is no job, such as describing a picture.

Those who ask for a model while it loads share the load. Other work counts against the same limits of device time as
jobs, in the same ledger.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.jobs.quota import check_device_time
from bot.policy.limits import Limits
from bot.policy.rules import resolve
from bot.store import DatabaseUnavailable, NewJob, Store
from bot.store.fairness.ledger import Ledger, reserve_charge, settle_charge
from engine.contract import UpscaleMethod, UpscaleTask

MAX_LOAD_SECONDS = 60.0  # device-seconds that a load costs at most

log = logging.getLogger(__name__)


class LoadCosts:
    """The first request for a model that no worker of its pool has in memory pays the load, the second half of it, the
    third a third, and so on, until it is loaded.

    `estimate_load`: of a pool and a model, the seconds until it is loaded; 0 if it is, or if nobody measured it yet.
    """

    def __init__(self, estimate_load: Callable[[str, str], float]) -> None:
        self._estimate_load = estimate_load
        self._payers = Counter[tuple[str, str]]()

    def add_shares(self, new_jobs: Sequence[NewJob]) -> list[NewJob]:
        """Return the jobs of one request, with its share of each load in the cost of the first job of that model."""
        priced = list[NewJob]()
        models = set[tuple[str, str]]()
        for new_job in new_jobs:
            model = (new_job.pool, new_job.model)
            share = 0.0 if model in models else self._share(model)
            models.add(model)
            priced.append(replace(new_job, cost=new_job.cost + share) if share else new_job)
        return priced

    def count_payers(self, new_jobs: Sequence[NewJob]) -> None:
        """Count an admitted request among those who share its loads."""
        for model in {(new_job.pool, new_job.model) for new_job in new_jobs}:
            if self._estimate_load(*model):
                self._payers[model] += 1

    def _share(self, model: tuple[str, str]) -> float:
        seconds = min(MAX_LOAD_SECONDS, self._estimate_load(*model))
        if not seconds:
            self._payers.pop(model, None)
        return seconds / (self._payers[model] + 1) if seconds else 0.0


MAX_SIDE = 4096  # pixels
UPSCALE_FACTORS = (4, 3, 2)
LANCZOS_SECONDS_PER_MP = 0.05  # for each megapixel of the enlarged picture; the transfer costs one megapixel more
SUPER_RESOLVER_MS_PER_MP = (
    14_000.0  # for each megapixel of the source, by the built-in super-resolver, as measured on one slow core
)


def largest_upscale(sha256: str, width: int, height: int, method: UpscaleMethod = "gan") -> UpscaleTask:
    """Return the largest upscale that fits. Raises `UserError` if none does."""
    for factor in UPSCALE_FACTORS:
        if max(width, height) * factor <= MAX_SIDE:
            return UpscaleTask(source=sha256, factor=factor, method=method)
    raise UserError(f"At {width} × {height} pixels this picture is as large as it gets.")


def upscale_notes(task: UpscaleTask, width: int, height: int) -> tuple[str, ...]:
    """Return a note if the default factor would be too large."""
    if task.factor == UPSCALE_FACTORS[0]:
        return ()
    side = UPSCALE_FACTORS[0] * max(width, height)
    return (
        f"×{UPSCALE_FACTORS[0]} would be {side} pixels a side, and at most {MAX_SIDE} fit: it becomes ×{task.factor}.",
    )


def upscale_cost(
    task: UpscaleTask, width: int, height: int, ms_per_megapixel: float = SUPER_RESOLVER_MS_PER_MP
) -> float:
    """Return the estimated device-seconds of an upscale. `ms_per_megapixel`: of the source, by the super-resolver."""
    megapixels = width * height / 1e6
    resolver_seconds = ms_per_megapixel * megapixels / 1000 if task.method == "gan" else 0.0
    return resolver_seconds + LANCZOS_SECONDS_PER_MP * (1.0 + megapixels * task.factor**2)


@dataclass
class WorkMeter:
    """What work has taken so far, in calibrated device-seconds."""

    seconds: float = 0.0


class WorkCharges:
    """Charges members for work. `limits`: the defaults."""

    def __init__(self, store: Store, *, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock

    @asynccontextmanager
    async def charge(self, member: Member, estimate: float) -> AsyncGenerator[WorkMeter]:
        """Charge the estimated device-seconds, run the body, then charge what its meter shows, at most the estimate.

        Raises `UserError` (429), and runs nothing, where a limit does not allow so much. If the bot ends meanwhile, the
        estimate stays charged.
        """
        now = self._clock()
        meter = WorkMeter()

        def check(ledger: Ledger) -> None:
            check_device_time(estimate, resolve(ledger.load_rules(), member, self._limits), ledger, now)

        charge = await self._store.write(reserve_charge, member, now, estimate, check)
        try:
            yield meter
        finally:
            try:
                await asyncio.shield(self._store.write(settle_charge, charge, min(meter.seconds, estimate)))
            except DatabaseUnavailable as error:
                log.warning("a charge of %.1f device-seconds stays at its estimate: %s", meter.seconds, error)
