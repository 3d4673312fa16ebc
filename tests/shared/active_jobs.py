"""What a bot knows of its active jobs, for tests that wait until it does."""

from __future__ import annotations

from typing import Any


def is_claimed(app: Any, job: str) -> bool:
    """Whether the bot knows which worker runs the job. It learns that after the job's row says so."""
    active_jobs = app.queue.active_jobs.by_id
    return job in active_jobs and active_jobs[job].is_claimed
