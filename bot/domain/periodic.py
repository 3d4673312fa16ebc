"""Work that repeats at an interval and survives outages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from logging import Logger


async def run_periodically(
    work: Callable[[], Awaitable[object]], seconds: float, label: str, log: Logger, *, pauses_first: bool = False
) -> None:
    """Run `work` until cancelled, with a pause of `seconds` between two rounds.

    An `OSError` (an outage of broker, database or disk) ends only its round: it is logged after `label`. Raises
    everything else.
    """
    if pauses_first:
        await asyncio.sleep(seconds)
    while True:
        try:
            await work()
        except OSError as error:
            log.warning("%s: %s", label, error)
        await asyncio.sleep(seconds)
