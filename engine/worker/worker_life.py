"""How a worker runs until it is drained, and what it does then, whatever draws for it. No torch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from engine.bus import BrokerUnreachable

log = logging.getLogger(__name__)


async def run_until_stopped(
    stop_signal: asyncio.Future[None], coroutines: Sequence[Coroutine[object, object, None]]
) -> None:
    """Run all until the signal comes or one of them ends; then cancel the others. Raises what that one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait([stop_signal, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for finished_task in done:
            finished_task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_shutdown_steps(*steps: Callable[[], Awaitable[None]]) -> None:
    """Run the steps in order. One that does not reach the broker is logged, and the next follows."""
    for step in steps:
        try:
            await step()
        except BrokerUnreachable as error:
            log.warning("%s", error)
