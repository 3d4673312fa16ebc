"""Pulls jobs while there is room for them, and announces the worker whenever its presence has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from engine.bus import BrokerUnreachable, Bus, BusMessage
from engine.contract import Job, Presence
from engine.worker.active_runs import ActiveRuns
from engine.worker.intake import Intake

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.25
POLL_SECONDS = 0.05
FULL_WAIT_SECONDS = 0.15  # longest wait of a full worker before it pulls a job that no other takes
PULL_SECONDS = 0.3  # short: a stopping worker waits for its last request
MAX_RUNS = 64


class JobPuller:
    """`get_rows` returns the rows that the worker `name` runs at once, `make_presence` what to announce now.

    Without a presence it is not there for jobs. It takes no further job while it has `max_runs`, or may not pull.
    """

    def __init__(
        self,
        bus: Bus,
        active_runs: ActiveRuns,
        intake: Intake,
        pools: Sequence[str],
        get_rows: Callable[[], int],
        make_presence: Callable[[], Presence | None],
        name: str,
        max_runs: int = MAX_RUNS,
        may_pull: Callable[[], bool] = lambda: True,
    ) -> None:
        self._bus = bus
        self._active_runs = active_runs
        self._intake = intake
        self._pools = pools
        self._get_rows = get_rows
        self._make_presence = make_presence
        self._name = name
        self._max_runs = max_runs
        self._may_pull = may_pull
        self._accepted_jobs: list[str] = []  # jobs on their way to a run

    @property
    def free_rows(self) -> int:
        return 0 if self._is_full else max(0, self._get_rows() - self._active_runs.rows)

    @property
    def _is_full(self) -> bool:
        """Whether it has as many runs as it may have, those included that are being claimed."""
        new_jobs = sum(self._active_runs.get(job) is None for job in self._accepted_jobs)
        return len(self._active_runs) + new_jobs >= self._max_runs

    async def pull_regularly(self) -> None:
        """Pull jobs, for ever."""
        while True:
            has_free_rows = await self._wait_for_rows()
            try:
                delivery = await self._bus.pull_job(self._pools, PULL_SECONDS, wait=has_free_rows)
            except BrokerUnreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if delivery is not None:
                self._accepted_jobs.append(delivery.value.id)  # at once: the task begins only after the next look
                self._active_runs.spawn(self._accept(delivery))

    async def _accept(self, delivery: BusMessage[Job]) -> None:
        try:
            await self._intake.accept(delivery)
        finally:
            self._accepted_jobs.remove(delivery.value.id)

    async def announce_regularly(self) -> None:
        """Announce the worker each time its presence is out of date, for ever."""
        while True:
            await self._active_runs.presence_changed.wait()
            self._active_runs.presence_changed.clear()
            try:
                presence = self._make_presence()
                if presence is None:
                    await self._bus.remove_presence(self._name)
                else:
                    await self._bus.announce(presence)
            except BrokerUnreachable as error:
                log.warning("%s", error)

    async def _wait_for_rows(self) -> bool:
        """Wait for free rows and return True. Return False when none are free after a wait.

        The wait grows with this worker's load. A full worker may then take a job that no other wants: the engine shares
        the device.
        """
        end = time.monotonic() + min(FULL_WAIT_SECONDS, POLL_SECONDS * self._active_runs.rows / self._get_rows())
        while not self._may_pull() or self._is_full or (self.free_rows == 0 and time.monotonic() < end):
            await asyncio.sleep(POLL_SECONDS)
        return self.free_rows > 0
