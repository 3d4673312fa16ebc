"""The rounds of closed servers: whoever closed one, and from where, what is open there is cancelled within seconds.

`/settings close` cancels by itself; the command line and a budget only write the rule, and an outage may break off
either. Knows the store and how a job is cancelled; nothing of who may close what.
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
    """Run `run` as a task. `cancel` cancels one job and says what happened."""

    def __init__(self, store: Store, cancel: Callable[[str], Awaitable[str]]) -> None:
        self._store, self._cancel = store, cancel
        self._shut: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Walk the rounds until cancelled. An outage of broker or database is waited out."""
        while True:
            try:
                await self.round()
            except (Unreachable, Unavailable) as error:
                log.warning("closed servers: %s", error)
            await asyncio.sleep(EVERY_SECONDS)

    async def round(self) -> None:
        """Cancel what is open in servers that were closed a round ago too: who closes by `/settings` comes first."""
        before, self._shut = self._shut, (await self._store.ask(rules.together)).shut
        for guild in sorted(self._shut & before):
            jobs = await self._store.ask(reads.open_of, None if guild == EVERYWHERE else guild)
            for job in jobs:
                await self._cancel(job)
            if jobs:
                log.info("%d jobs of a closed server were cancelled", len(jobs))
