"""What ends a worker's process in order: a signal, or the end of the process that started it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

log = logging.getLogger(__name__)

PARENT_CHECK_SECONDS = 0.5  # between two checks of the parent process


async def act_on_parent_exit(parent: int, on_exit: Callable[[], None]) -> None:
    """Call `on_exit` once the parent process has died: nothing else would ever stop this worker."""
    if not parent:
        return
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_SECONDS)
    log.warning("the parent process %d of this worker has ended", parent)
    on_exit()


class SignalHandlers:
    """While active, SIGTERM and SIGINT call `on_signal` and do not end the process."""

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signal_number)
