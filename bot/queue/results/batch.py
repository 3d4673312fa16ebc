"""Selects results of one job to store together: pictures of one epoch, and the end that follows them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.bus import BusMessage
from engine.contract import JobFinished, PictureReady, Result

MAX_BYTES = 8 * 1024 * 1024  # most bytes of pictures in memory at once


def select_batch(
    pending: Sequence[BusMessage[Result]],
    is_healthy: Callable[[BusMessage[Result]], bool],
    byte_budget: int = MAX_BYTES,
) -> list[BusMessage[Result]]:
    """Return the longest usable head of the queue; only the first result if it is of another kind, or had a fault.

    A result that had a fault is stored alone, so that the fault affects no other.
    """
    batch: list[BusMessage[Result]] = []
    slots: set[tuple[str, int]] = set()
    for message in pending:
        value = message.value
        if (
            not isinstance(value, PictureReady | JobFinished)
            or not is_healthy(message)
            or value.epoch != pending[0].value.epoch
        ):
            break
        if isinstance(value, JobFinished):
            batch.append(message)
            break
        byte_budget -= value.bytes
        if (batch and byte_budget < 0) or (value.kind, value.image) in slots:
            break
        slots.add((value.kind, value.image))
        batch.append(message)
    return batch or [pending[0]]
