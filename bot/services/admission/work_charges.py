"""Charges for work that is no job: it counts against the same limits of device time as jobs, in the same ledger."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bot.domain.dto import Member
from bot.policy.limits import Limits
from bot.policy.rules import resolve
from bot.services.admission.spending_check import check_device_time
from bot.store import DatabaseUnavailable, Store
from bot.store.fairness.ledger import Ledger
from bot.store.fairness.work_charges import reserve_charge, settle_charge

log = logging.getLogger(__name__)


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
