"""The limit for each member and the memory limiter: tasks wait or are refused, and a cancelled task frees its place."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bot.domain import concurrency
from bot.domain.concurrency import PerMemberLimit, SharedCall
from bot.domain.errors import UserError
from bot.pictures.uploads.upload_decoder import MemoryLimiter

pytestmark = pytest.mark.asyncio


async def test_a_member_waits_only_for_their_own_tasks() -> None:
    request_limit = PerMemberLimit(max_requests=3)
    order = list[str]()
    release = asyncio.Event()

    async def one(member: str, name: str) -> None:
        async with request_limit.reserve(member):
            order.append(name)
            await release.wait()

    tasks = [asyncio.create_task(one(*each)) for each in (("ann", "a1"), ("ann", "a2"), ("ann", "a3"), ("bob", "b1"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["a1", "b1"]
    with pytest.raises(UserError, match="under way already"):
        await one("ann", "a4")
    tasks[1].cancel()
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a1", "b1", "a3"]
    assert request_limit._queues == {}, "no member is remembered"
    assert concurrency.MAX_REQUESTS > 1


async def test_memory_is_granted_in_order_and_freed_however_a_task_ends() -> None:
    memory_limiter = MemoryLimiter(max_bytes=10, max_waiting=3)
    order = list[str]()

    async def one(name: str, size: int, wait_until: asyncio.Event) -> None:
        async with memory_limiter.reserve(size):
            order.append(name)
            await wait_until.wait()

    first = asyncio.Event()
    second = asyncio.Event()
    tasks = [
        asyncio.create_task(one("a", 6, first)),
        asyncio.create_task(one("b", 6, second)),
        asyncio.create_task(one("c", 1, second)),
    ]
    await asyncio.sleep(0.01)
    assert (order, memory_limiter.reserved_bytes) == (["a"], 6), "a small request does not pass a large one"
    late_task = asyncio.create_task(one("d", 99, second))
    await asyncio.sleep(0.01)
    with pytest.raises(UserError, match="Too many pictures"):
        await one("e", 1, second)
    late_task.cancel()
    first.set()
    await asyncio.sleep(0.01)
    assert (order, memory_limiter.reserved_bytes) == (["a", "b", "c"], 7)
    tasks[1].cancel()
    second.set()
    await asyncio.gather(*tasks, late_task, return_exceptions=True)
    async with memory_limiter.reserve(99):
        assert memory_limiter.reserved_bytes == 10, "a request above the limit takes all of it"
    assert memory_limiter.reserved_bytes == 0


async def test_all_who_ask_before_a_call_begins_share_it() -> None:
    gate = asyncio.Event()
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        number = calls
        await gate.wait()
        return number

    shared = SharedCall(call)
    first = asyncio.create_task(shared.get())
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(shared.get()) for _ in range(5)]
    await asyncio.sleep(0.01)
    later[0].cancel()
    gate.set()
    assert await first == 1, "it began before the others asked"
    assert await asyncio.gather(*later[1:]) == [2] * 4, "one who leaves takes nothing from the others"
    assert await shared.get() == 3


async def test_a_shared_call_fails_for_its_callers_only() -> None:
    outcomes: list[Any] = [OSError("down"), "up"]

    async def call() -> str:
        if isinstance(outcome := outcomes.pop(0), OSError):
            raise outcome
        return outcome

    shared = SharedCall(call)
    failed = await asyncio.gather(shared.get(), shared.get(), return_exceptions=True)
    assert [str(error) for error in failed] == ["down", "down"]
    assert await shared.get() == "up"
