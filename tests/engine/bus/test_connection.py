"""The wrapper around calls of the broker's client: all failures are one exception, and no cancellation gets lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import nats.errors
import pytest

from engine.bus import BrokerUnreachable
from engine.bus.connection import translate_errors


async def swallow_cancellation() -> None:
    """Like `asyncio.wait_for` before Python 3.12, when the answer arrives together with the cancellation."""
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        return


async def swallow_cancellation_and_fail() -> None:
    await swallow_cancellation()
    raise nats.errors.TimeoutError


async def sleep_until_timeout() -> None:
    """Cancels itself by its timeout; the task is not cancelled."""
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)
    except TimeoutError:
        return


@pytest.mark.asyncio
@pytest.mark.parametrize("call", [swallow_cancellation, swallow_cancellation_and_fail])
async def test_a_loop_ends_even_if_the_library_swallows_its_cancellation(call: Callable[[], Awaitable[None]]) -> None:
    order: list[str] = []

    async def loop() -> None:
        while True:
            try:
                with translate_errors("ask"):
                    await call()
                order.append("answered")
            except BrokerUnreachable:
                order.append("failed")

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    task.cancel()
    done_tasks, _ = await asyncio.wait([task], timeout=1.0)
    assert done_tasks
    assert task.cancelled()
    assert order == []


@pytest.mark.asyncio
async def test_a_cancelled_task_can_still_call_the_broker_in_its_cleanup() -> None:
    calls: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            with translate_errors("say goodbye"):
                await asyncio.sleep(0)
            calls.append("goodbye")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=1.0)
    assert calls == ["goodbye"]


@pytest.mark.asyncio
async def test_a_timeout_inside_is_no_cancellation_and_a_failure_has_a_sentence() -> None:
    with translate_errors("ask"):
        await sleep_until_timeout()
    with (
        pytest.raises(BrokerUnreachable, match=r"^The broker could not be reached to ask: nats: timeout\.$"),
        translate_errors("ask"),
    ):
        raise nats.errors.TimeoutError
