"""What is around every call of the broker's client: its failures have one name, and no cancellation is lost in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import nats.errors
import pytest

from engine.bus import Unreachable
from engine.bus.link import reaching


async def answered() -> None:
    """As `asyncio.wait_for` before Python 3.12 where the answer comes in the same moment as the cancellation."""
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        return


async def failed() -> None:
    await answered()
    raise nats.errors.TimeoutError


async def within_a_time() -> None:
    """Its own cancellation is none of the task's."""
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)
    except TimeoutError:
        return


@pytest.mark.asyncio
@pytest.mark.parametrize("call", [answered, failed])
async def test_a_loop_ends_though_the_library_swallowed_its_cancellation(call: Callable[[], Awaitable[None]]) -> None:
    turns: list[str] = []

    async def loop() -> None:
        while True:
            try:
                with reaching("ask"):
                    await call()
                turns.append("answered")
            except Unreachable:
                turns.append("failed")

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1.0)
    assert done
    assert task.cancelled()
    assert turns == []


@pytest.mark.asyncio
async def test_who_is_cancelled_may_still_say_goodbye() -> None:
    said: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            with reaching("say goodbye"):
                await asyncio.sleep(0)
            said.append("goodbye")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=1.0)
    assert said == ["goodbye"]


@pytest.mark.asyncio
async def test_a_timeout_inside_is_no_cancellation_and_a_failure_has_its_sentence() -> None:
    with reaching("ask"):
        await within_a_time()
    with (
        pytest.raises(Unreachable, match=r"^The broker could not be reached to ask: nats: timeout\.$"),
        reaching("ask"),
    ):
        raise nats.errors.TimeoutError
