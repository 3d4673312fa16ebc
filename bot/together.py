"""Runs coroutines together until the first one ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(*routines: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, then cancel the others; raises the error of that one."""
    tasks = [asyncio.ensure_future(routine) for routine in routines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
