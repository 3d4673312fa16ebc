"""Checks that a result comes from a worker that may report on its job. Knows the board; does no I/O."""

from __future__ import annotations

from bot.queue.board import Board
from engine.bus import Delivered, subjects
from engine.job import Result, Started


def sender_fault(delivered: Delivered[Result], board: Board) -> str:
    """Return why the sender may not report on this job; empty if it may.

    The broker forces a worker with its own key to send under its own name, which the subject contains. For a known
    epoch only the worker that started it may report. A newer epoch is a worker that took over.
    """
    value = delivered.value
    worker, job = subjects.speaker(delivered.msg.subject)
    run = board.runs.get(value.job)
    begun = run.record if run is not None and run.record.epoch == value.epoch else None
    if job != value.job:
        return f"it is about job {value.job}, but its subject says {job}"
    if isinstance(value, Started) and value.worker != worker:
        return f"{worker} reports a start of {value.worker}"
    if begun is not None and begun.worker not in ("", worker):
        return f"{worker} reports on a job of {begun.worker}"
    return ""
