"""A campaign counts the messages left in the broker: real streams with a hostile client's messages."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.bus import Bus
from engine.bus.embedded_broker import Broker
from engine.contract import JobFinished
from tools.chaos.evidence_collector import count_messages_left

JOB = "01M8CK6KB8DZPRNE2EHA4CJX54"


@pytest.mark.asyncio
async def test_messages_of_another_version_do_not_count_as_left_over(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        result = JobFinished(job=JOB, epoch=1, cost=1.0, seconds=1.0, ms_per_step=1.0)
        valid = msgspec.json.decode(msgspec.json.encode(result))
        counts = []
        for message in (valid, {**valid, "v": 99, "new": True}, {**valid, "type": "Miracle"}):
            await bus.js.publish(f"results.liar.{JOB}", msgspec.msgpack.encode(message))
            counts.append(await count_messages_left(bus))
        await bus.close()
    assert [one["results"] for one in counts] == [1, 1, 2]
    assert {one["work"] for one in counts} == {0}
