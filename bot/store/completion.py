"""Records incoming pictures, and the end of their job where none is missing, in one transaction.

A transaction for each picture would cost more than the picture. Works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bot.store import moves, reads, writes
from bot.store.records import Moved, Stored, record
from engine.job import Method


@dataclass(frozen=True)
class End:
    """A worker's figures for a finished job: `cost` in device-seconds, `seconds`, and milliseconds per step."""

    cost: float
    seconds: float
    ms_per_step: float


def take_in(
    connection: Connection, job: str, epoch: int, found: Sequence[Stored], end: End | None, now: float, *,
    method: Method | None = None,
) -> tuple[bool, Moved | None]:  # fmt: skip
    """Record pictures of one job, and finish it if `end` is given and none is missing.

    False: the job is unknown, deleted or over, or a newer epoch has it. `method`: how the worker made an upscale.
    """
    row = writes.keep(connection, found, epoch, now, method) if found else writes.open_row(connection, job, epoch)
    if row is None or end is None:
        return row is not None, None
    one = record(row)
    if one.missing(reads.stored(connection, [job])):
        return True, None
    told = {"seconds": end.seconds, "ms_per_step": end.ms_per_step, "step": one.steps}
    return True, moves.end(connection, "finish", job, now, end.cost, epoch=epoch, **told)
