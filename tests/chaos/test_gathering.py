"""What a campaign finds in the broker when all is over: real streams, as a liar leaves them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from chaos.gathering import left
from engine.bus import Bus
from engine.bus.broker import Broker
from engine.job import Finished

JOB = "01M8CK6KB8DZPRNE2EHA4CJX54"


@pytest.mark.asyncio
async def test_what_waits_for_an_update_is_no_rest_and_everything_else_is(tmp_path: Path) -> None:
    async with Broker(tmp_path) as broker:
        bus = await Bus.connect(broker.url, broker.token)
        await bus.declare()
        done = Finished(job=JOB, epoch=1, cost=1.0, seconds=1.0, ms_per_step=1.0)
        right = msgspec.json.decode(msgspec.json.encode(done))
        found = []
        for said in (right, {**right, "v": 99, "new": True}, {**right, "type": "Miracle"}):
            await bus.js.publish(f"results.liar.{JOB}", msgspec.msgpack.encode(said))
            found.append(await left(bus))
        await bus.close()
    assert [one["results"] for one in found] == [1, 1, 2]
    assert {one["work"] for one in found} == {0}
