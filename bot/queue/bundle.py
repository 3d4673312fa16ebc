"""Which reports of one job may be stored together: pictures of one epoch, and the end that follows them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.bus import Delivered
from engine.job import Finished, Picture, Result

ROOM = 8 * 1024 * 1024  # bytes of pictures that are in memory together


def bundle(
    waiting: Sequence[Delivered[Result]], is_good: Callable[[Delivered[Result]], bool], room: int = ROOM
) -> list[Delivered[Result]]:
    """The head of the line; the first report alone where it is of another kind, or not good.

    A report that is not good is taken in alone, so that what is wrong with it stays with it.
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
