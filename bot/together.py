"""Runs coroutines together until the first one ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def race(*routines: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, then cancel the others; raises the error of that one."""
    tasks = [asyncio.ensure_future(routine) for routine in routines]
    try:
        ended_tasks, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended_tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
