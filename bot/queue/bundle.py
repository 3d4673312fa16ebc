"""Selects results of one job to store together: pictures of one epoch, and the end that follows them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.bus import Delivered
from engine.job import Finished, Picture, Result

ROOM = 8 * 1024 * 1024  # most bytes of pictures in memory at once


def bundle(
    waiting: Sequence[Delivered[Result]], is_good: Callable[[Delivered[Result]], bool], room: int = ROOM
) -> list[Delivered[Result]]:
    """Return the longest usable head of the queue; only the first result if it is of another kind, or not good.

    A result that is not good is stored alone, so that its fault affects no other.
    """
    taken: list[Delivered[Result]] = []
    known: set[tuple[str, int]] = set()
    for one in waiting:
        value = one.value
        if not isinstance(value, Picture | Finished) or not is_good(one) or value.epoch != waiting[0].value.epoch:
            break
        if isinstance(value, Finished):
            taken.append(one)
            break
        room -= value.bytes
        if (taken and room < 0) or (value.kind, value.image) in known:
            break
        known.add((value.kind, value.image))
        taken.append(one)
    return taken or [waiting[0]]
