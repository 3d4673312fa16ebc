"""Shared by the tests of workers: a broker, the bot's end of the bus, a small job. Imports no torch."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from engine.bus import Bus, BusLimits
from engine.bus.embedded_broker import Broker
from engine.contract import (
    BillingKey,
    Concept,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobStarted,
    PictureReady,
    Recipe,
)

LEASE = 2.0
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
LONG_STEPS = 400


def make_job(job: str = JOB, *, attempt: int = 1, ladder: bool = False, **recipe: Any) -> Job:
    """One small picture: a single row of the network."""
    defaults: dict[str, Any] = {
        "concepts": (Concept("a red apple"),),
        "model": "embedded",
        "sampler": "ddim",
        "steps": 4,
        "seed": 7,
        "guidance": 1.0,
        "width": 64,
        "height": 64,
        "count": 1,
        "dtype": "float32",
        "bucket": 1,
    }
    share = BillingKey("standard", "guild", "ann")
    task = Recipe(**{**defaults, **recipe})
    return Job(id=job, task=task, billing_key=share, cost=8.0, deadline=2e9, attempt=attempt, ladder=ladder)


class BusHarness:
    """A broker, and the bot's end of the bus."""

    def __init__(self, broker: Broker, lease: float = LEASE) -> None:
        self.broker = broker
        self.lease = lease
        self.buses: list[Bus] = []
        self.bot: Bus

    async def connect(self) -> Bus:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=self.lease))
        self.buses.append(bus)
        await bus.declare()
        return bus

    async def collect_results(self, job: str = JOB, seconds: float = 120.0) -> list[Any]:
        """Acknowledges and returns all results of a job up to its end."""
        results: list[Any] = []
        stream = self.bot.consume_results()
        async with asyncio.timeout(seconds):
            async for delivered in stream:
                await delivered.ack()
                if delivered.value.job == job:
                    results.append(delivered.value)
                if delivered.value.job == job and isinstance(delivered.value, JobFinished | JobFailed | JobCancelled):
                    break
        await close_stream(stream)
        return results

    async def wait_for_start(self, job: str = JOB) -> Any:
        stream = self.bot.consume_results()
        async with asyncio.timeout(60):
            async for delivered in stream:
                await delivered.ack()
                if delivered.value.job == job and isinstance(delivered.value, JobStarted):
                    await close_stream(stream)
                    return delivered.value
        raise AssertionError("it never started")

    async def count_messages(self, stream: str) -> int:
        return (await self.bot.js.stream_info(stream)).state.messages


async def close_stream(stream: Any) -> None:
    await stream.aclose()


def hash_content(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def picture_hashes(results: list[Any], kind: str = "image") -> list[str]:
    pictures = [value for value in results if isinstance(value, PictureReady) and value.kind == kind]
    return [value.sha256 for value in sorted(pictures, key=lambda value: value.image)]
