"""Messages that no client library would send reach the broker, and the bot sets them aside."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from engine.contract import JobStarted
from tools.chaos.hostile_client import ODD_BLOCKS, ODD_NAMES, HostileClient
from tools.chaos.observer import ClaimRecord, Observer

JOB = "01M8CK6KB8DZPRNE2EHA4CJX54"


@pytest.mark.asyncio
async def test_malformed_subjects_and_headers_are_set_aside(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker:
        bus, bot = [await Bus.connect(broker.url, broker.token) for _ in range(2)]
        await bot.declare()
        client = HostileClient(bus, Observer(bus, list))
        claim = ClaimRecord(1, "one", 0, 0.0)
        for seed in range(20):
            await client.send_odd_subjects(JOB, claim, random.Random(seed))
            await client.send_odd_headers(JOB, claim, random.Random(seed))
        await bus.client.flush()
        assert bus.client.last_error is None
        async with asyncio.timeout(10):
            while (await bot.js.stream_info("results")).state.last_seq < 40:
                await asyncio.sleep(0.02)
        await bus.publish_result("one", JobStarted(job=JOB, epoch=1, worker="one"))
        results = bot.consume_results()
        delivered = await asyncio.wait_for(anext(results), 10)
        assert delivered.value.job == JOB
        assert bot.dead_letters.count == {"results": 40}
        assert {len(random.Random(seed).choice(ODD_NAMES)) for seed in range(20)} >= {2, 3, 3000}
        assert len({random.Random(seed).choice(ODD_BLOCKS) for seed in range(20)}) > 3
        await results.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        for one in (bus, bot):
            await one.close()
