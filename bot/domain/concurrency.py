"""Limits on what runs at once.

`PerMemberLimit`: a member's slow requests run one at a time and delay nobody else's. `race`: coroutines run until one
of them ends. `run_in_thread`: a thread whose caller is cancelled still counts. `SharedCall`: many callers share one
call.

Work that repeats at an interval and survives outages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from logging import Logger
from typing import Any, Generic, TypeVar

from bot.domain.errors import UserError

T = TypeVar("T")

MAX_REQUESTS = 4  # requests of one member: one runs, the others wait
TOO_MANY_REQUESTS = (
    f"{MAX_REQUESTS} of your requests with pictures are under way already, the most at once. Try again when one is "
    "done."
)


class PerMemberLimit:
    """One queue for each member with requests."""

    def __init__(self, max_requests: int = MAX_REQUESTS) -> None:
        self._max_requests = max_requests
        self._queues: dict[str, _MemberQueue] = {}

    @asynccontextmanager
    async def reserve(self, member: str) -> AsyncGenerator[None]:
        """Run the body after all earlier requests of that member. Raises `UserError` (429) if the queue is full."""
        queue = self._queues.setdefault(member, _MemberQueue())
        if queue.length >= self._max_requests:
            raise UserError(TOO_MANY_REQUESTS, 429)
        queue.length += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.length -= 1
            if not queue.length:
                del self._queues[member]


@dataclass
class _MemberQueue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class SharedCall(Generic[T]):
    """Makes one call for all who ask before it begins, so each gets a result that is newer than its request."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._lock = asyncio.Lock()
        self._next_task: asyncio.Task[T] | None = None
        self._tasks: set[asyncio.Task[T]] = set()  # asyncio itself holds no task

    async def get(self) -> T:
        """Return the result of the next call, which begins when the current one has ended. Raises its errors."""
        if (task := self._next_task) is None:
            task = self._next_task = asyncio.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _run(self) -> T:
        async with self._lock:
            self._next_task = None
            return await self._call()


async def run_in_thread(function: Callable[[], T], on_cancel: Callable[[], object] = lambda: None) -> T:
    """Return the result of `function`, which runs in a thread. A cancelled caller calls `on_cancel` and waits for the
    thread: no thread can be ended from outside, and the limit that the caller holds is for threads.
    """
    thread = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait([thread])
        if not thread.cancelled():
            thread.exception()  # nobody else reads it
        raise


async def race(*routines: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, then cancel the others. Raises the error of the one that ended."""
    tasks = [asyncio.ensure_future(routine) for routine in routines]
    try:
        ended_tasks, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended_tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
