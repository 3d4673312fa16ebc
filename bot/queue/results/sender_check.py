"""Checks that a result comes from a worker that may report on its job. Knows the active jobs; does no I/O."""

from __future__ import annotations

from bot.queue.active_jobs import ActiveJobs
from engine.bus import BusMessage, subjects
from engine.contract import JobStarted, Result


def find_sender_fault(message: BusMessage[Result], active_jobs: ActiveJobs) -> str:
    """Return why the sender may not report on this job; empty if it may.

    The broker makes a worker with its own key send under its own name, which the subject contains. For a known epoch,
    only the worker that started it may report. A newer epoch belongs to a worker that took over.
    """
    result = message.value
    worker, job = subjects.parse_result_subject(message.nats_msg.subject)
    active_job = active_jobs.by_id.get(result.job)
    claimed_record = active_job.record if active_job is not None and active_job.record.epoch == result.epoch else None
    if job != result.job:
        return f"it is about job {result.job}, but its subject says {job}"
    if isinstance(result, JobStarted) and result.worker != worker:
        return f"{worker} reports a start of {result.worker}"
    if claimed_record is not None and claimed_record.worker not in ("", worker):
        return f"{worker} reports on a job of {claimed_record.worker}"
    return ""
