"""Cancels open jobs of closed servers within seconds, however the server was closed.

`/settings close` cancels by itself. The command line and a budget only write the rule, and an outage may interrupt
either. Knows the store and how to cancel a job; checks no permissions.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from bot.domain.periodic import run_periodically
from bot.policy.rules import EVERYWHERE
from bot.store import Store, rules
from bot.store.jobs import queries

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0


class ClosedGuildWatcher:
    """Run `run` as a task. `cancel` cancels one job and returns a sentence on the outcome."""

    def __init__(self, store: Store, cancel: Callable[[str], Awaitable[str]]) -> None:
        self._store = store
        self._cancel = cancel
        self._closed_guilds: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        await run_periodically(self.run_round, INTERVAL_SECONDS, "closed servers", log)

    async def run_round(self) -> None:
        """Cancel open jobs in servers that were already closed a round ago, so that `/settings close` comes first."""
        closed_before = self._closed_guilds
        self._closed_guilds = (await self._store.query(rules.load_guild_limits)).closed_guilds
        for guild in sorted(self._closed_guilds & closed_before):
            job_ids = await self._store.query(queries.list_open_ids, None if guild == EVERYWHERE else guild)
            for job in job_ids:
                await self._cancel(job)
            if job_ids:
                log.info("%d jobs of a closed server were cancelled", len(job_ids))
