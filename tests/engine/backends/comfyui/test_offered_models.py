"""The models of a backend before a member: offered with their samplers, drawn, and refused before the queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.bus.embedded_broker import Broker
from engine.process.settings import BackendSettings
from shared.backend_harness import run_backend_worker, serve
from shared.bus_harness import LEASE, BusHarness
from shared.clock import wait_until
from tests.engine.backends.comfyui.comfyui_stand_in import ComfyUiStandIn

if TYPE_CHECKING:
    from shared.web_server import OpenServer

REFUSED = {
    "a lamp --model sd15 --tile": "sd15 draws no tiles: leave out --tile.",
    "a lamp::2 a cat::1 --model sd15": "sd15 reads one text: leave out the weights (::).",
    "a lamp --model sd15 --interval 0.2-0.8": "sd15 guides at every step: leave out --interval.",
    "a lamp --model sd15 --sampler ddpm": "sd15 does not take the sampler ddpm: it takes",
    "a lamp --model sd15 --best": "sd15 has no judge",
}


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_member_draws_with_comfyui_and_is_refused_before_the_queue(
    open_server: OpenServer, broker: Broker, tmp_path: Path
) -> None:
    comfyui = ComfyUiStandIn()
    harness = BusHarness(broker, LEASE)
    async with open_server(workers=0) as server, serve(comfyui.app) as url:
        backend = BackendSettings("comfyui", url, size=64)
        async with run_backend_worker(harness, backend, tmp_path / "worker"):
            await wait_until(server.services.live_workers)
            names = {profile.name for profile in server.services.catalog.list_profiles()}
            assert names == {"folder-sdxl-base", "sd15"}
            for prompt, sentence in REFUSED.items():
                status, reply = await server.request_json("POST", "/api/jobs", {"prompt": prompt})
                assert status in (400, 422), reply
                assert sentence in reply["error"]
            assert comfyui.orders == []
            job = await server.imagine("a (red:1.2) lamp --model sd15 --sampler euler_a --steps 6 --no blur --count 2")
            end = await server.wait_for_end(job)
            assert end["state"] == "finished", end
            status, reply = await server.request_json("POST", f"/api/jobs/{job}/vary/1", {})
            assert (status, reply["error"]) == (422, "sd15 draws no variations: roll again, or remix.")
        for bus in harness.buses:
            await bus.close()
    inputs = comfyui.orders[0]["prompt"]["sampling"]["inputs"]
    assert (inputs["sampler_name"], inputs["scheduler"], inputs["steps"]) == ("euler_ancestral", "normal", 6)
    assert [order["prompt"]["prompt"]["inputs"]["text"] for order in comfyui.orders] == 2 * ["a (red:1.2) lamp"]
