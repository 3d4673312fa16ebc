"""The line of renderings: one at a time for each member, a few at once, and a bounded number that wait.

Films cost seconds of a core. A member's own requests wait for one another, so they delay nobody else's much.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

from bot.domain.concurrency import run_in_thread
from bot.domain.errors import UserError
from bot.images.films.animation import IS_ABANDONED

T = TypeVar("T")

MAX_RUNNING = 2  # renderings at once: each takes a core, and up to 150 MB of pixels
# requests, running and waiting: of one member, and of all; a first one always fits
MAX_OF_MEMBER = 12
MAX_IN_LINE = 48
RETRY_SECONDS = 5.0  # by then a rendering or two are done
TOO_MANY_OF_MEMBER = f"{MAX_OF_MEMBER} films of yours are being made already. Try again when one is done."
LINE_FULL = "Too many films are being made just now. Try again in a few seconds."


class RenderLine:
    """Belongs to the event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._slots = asyncio.Semaphore(MAX_RUNNING)
        self._requests: Counter[str] = Counter()  # by member
        self._member_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def wait_turn(self, member: str) -> AsyncGenerator[None]:
        """Run the body after all earlier requests of that member.

        Raises `UserError` (429) if the member, or all together, have too many requests.
        """
        own_requests = self._requests.get(member, 0)
        if own_requests >= MAX_OF_MEMBER or (own_requests and self._requests.total() >= MAX_IN_LINE):
            sentence = TOO_MANY_OF_MEMBER if own_requests >= MAX_OF_MEMBER else LINE_FULL
            raise UserError(sentence, 429, retry_at=self._clock() + RETRY_SECONDS)
        self._requests[member] += 1
        try:
            async with self._member_locks.setdefault(member, asyncio.Lock()):
                yield
        finally:
            self._requests[member] -= 1
            if not self._requests[member]:
                del self._requests[member]

    async def render(self, render: Callable[[], T]) -> T:
        """Return the result of `render`, which runs in a thread. A cancelled caller's rendering ends at its next frame,
        and only then frees its slot.
        """
        async with self._slots:
            abandoned = threading.Event()
            IS_ABANDONED.set(abandoned.is_set)  # the thread inherits it
            return await run_in_thread(render, abandoned.set)
