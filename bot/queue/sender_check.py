"""Whether a report comes from a worker that may speak about its job. Knows the board; does no I/O."""

from __future__ import annotations

from bot.queue.board import Board
from engine.bus import Delivered, subjects
from engine.job import Result, Started


def sender_fault(delivered: Delivered[Result], board: Board) -> str:
    """Why a report is none of its sender's business, empty where it is.

    The broker lets a worker with a key of its own speak under its own name alone, and the subject has that name. Of
    an epoch that is known, only the worker that began it may speak. A newer epoch is a worker that took over.
    """
    value = delivered.value
    worker, job = subjects.speaker(delivered.msg.subject)
    run = board.runs.get(value.job)
    begun = run.record if run is not None and run.record.epoch == value.epoch else None
    if job != value.job:
        return f"it is about job {value.job}, and was sent as about {job}"
    if isinstance(value, Started) and value.worker != worker:
        return f"{worker} says that {value.worker} began"
    if begun is not None and begun.worker not in ("", worker):
        return f"{worker} reports on what {begun.worker} runs"
    return ""
