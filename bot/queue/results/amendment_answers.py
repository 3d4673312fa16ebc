"""Records what workers answer to changes of running jobs: SQL first, then the active jobs and the feed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bot.domain.events import Feed, JobSteered
from bot.queue.active_jobs import ActiveJobs
from bot.store import Store
from bot.store.transitions.amendments import answer_amendment
from engine.contract import JobAmended, ModelProfile, Recipe

log = logging.getLogger(__name__)


class AmendmentAnswers:
    """`find_profile`: of a recipe's model, which says what a change costs; None if it is unknown."""

    def __init__(
        self, store: Store, active_jobs: ActiveJobs, feed: Feed, find_profile: Callable[[Recipe], ModelProfile | None]
    ) -> None:
        self._store = store
        self._active_jobs = active_jobs
        self._feed = feed
        self._find_profile = find_profile

    async def record_answer(self, answer: JobAmended) -> None:
        """Record an answer. A repeated or stale one changes nothing.

        Raises ValueError for a change that contradicts an earlier one: an earlier answer may come after it.
        """
        active_job = self._active_jobs.by_id.get(answer.job)
        recipe = active_job.record.task if active_job is not None else None
        model = self._find_profile(recipe) if isinstance(recipe, Recipe) else None
        answered = await self._store.write(answer_amendment, answer, model)
        if answered is None:
            return
        self._store.version += 1  # its rows may be others now
        record = answered.job_record
        amendment = answered.amendment
        self._active_jobs.follow_record(record)
        if isinstance(record.task, Recipe):
            self._feed.publish(JobSteered(record.id, amendment.to_view(record.steps), record.task))
        outcome = f"made at step {amendment.step}" if amendment.state == "made" else f"refused: {amendment.reason}"
        log.info("job %s: change %d %s", record.id, amendment.number, outcome)
