"""Time in tests: a clock that only the test moves, and waits for a condition instead of a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import Any


class Clock:
    """A clock that only the test moves. In seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Polls the condition, which may be a coroutine function, and returns its first true result."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if isawaitable(result):
                result = await result
            if result:
                return result
            await asyncio.sleep(0.02)
