"""Cancels open jobs of closed servers within seconds, wherever the server was closed from.

`/settings close` cancels by itself. The command line and a budget only write the rule, and an outage may interrupt
either. Knows the store and how to cancel a job; checks no permissions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from bot.rules import EVERYWHERE
from bot.store import Store, Unavailable, reads, rules
from engine.bus import Unreachable

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0


class Shutting:
    """Run `run` as a task. `cancel` cancels one job and returns a sentence on the outcome."""

    def __init__(self, store: Store, cancel: Callable[[str], Awaitable[str]]) -> None:
        self._store, self._cancel = store, cancel
        self._shut: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        while True:
            try:
                await self.round()
            except (Unreachable, Unavailable) as error:
                log.warning("closed servers: %s", error)
            await asyncio.sleep(EVERY_SECONDS)

    async def round(self) -> None:
        """Cancel open jobs in servers that were closed a round ago too, so that `/settings close` comes first."""
        before, self._shut = self._shut, (await self._store.ask(rules.together)).shut
        for guild in sorted(self._shut & before):
            jobs = await self._store.ask(reads.open_of, None if guild == EVERYWHERE else guild)
            for job in jobs:
                await self._cancel(job)
            if jobs:
                log.info("%d jobs of a closed server were cancelled", len(jobs))
