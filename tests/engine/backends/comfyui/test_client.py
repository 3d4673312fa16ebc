"""The client of ComfyUI alone: its order of messages, what others draw there, and what it cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from io import BytesIO

import pytest
from aiohttp import web
from PIL import Image

from engine.backends.comfyui.client import ComfyUi, load_built_in_workflows, match_comfyui_samplers
from engine.remote.drawing import BackendUnreachable, DrawProgress, DrawRequest
from engine.remote.http_client import BackendHttp
from shared.backend_harness import serve
from shared.clock import wait_until
from tests.engine.backends.comfyui.comfyui_stand_in import ComfyUiStandIn

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def talk_to(app: web.Application) -> AsyncGenerator[ComfyUi]:
    workflows = await asyncio.to_thread(load_built_in_workflows)
    async with serve(app) as url:
        comfyui = ComfyUi(BackendHttp("ComfyUI", url, {"Authorization": "Bearer a-key"}), workflows)
        try:
            yield comfyui
        finally:
            await comfyui.close()


async def make_request(comfyui: ComfyUi) -> DrawRequest:
    model = (await comfyui.list_models())[0]
    return DrawRequest(model, "a lamp", "", 7, 4, 5.0, "euler", 64, 64)


async def test_a_picture_comes_although_its_history_is_late_and_cannot_be_deleted() -> None:
    server = ComfyUiStandIn()
    told = list[DrawProgress]()
    server.forgets = False
    async with talk_to(server.app) as comfyui:
        content = await comfyui.draw(await make_request(comfyui), told.append)
    assert Image.open(BytesIO(content)).getpixel((0, 0)) == (7, 99, 0)
    assert [each.begins for each in told].index(True) == 0, "its price counts from here"


async def test_previews_of_what_others_draw_are_not_ours() -> None:
    server = ComfyUiStandIn()
    told = list[DrawProgress]()
    server.stranger = asyncio.Event()
    async with talk_to(server.app) as comfyui:
        request = await make_request(comfyui)
        drawing = asyncio.create_task(comfyui.draw(request, told.append))
        await wait_until(lambda: server.orders)
        server.stranger.set()
        await drawing
    colours = [Image.open(BytesIO(each.preview)).getpixel((0, 0)) for each in told if each.preview]
    assert len(colours) == 4
    assert all(isinstance(colour, tuple) and colour[2] < 50 for colour in colours), "the stranger's is blue"


async def test_a_picture_that_waits_leaves_the_queue_and_interrupts_nobody() -> None:
    server = ComfyUiStandIn()
    server.stranger = asyncio.Event()
    async with talk_to(server.app) as comfyui:
        drawing = asyncio.create_task(comfyui.draw(await make_request(comfyui), lambda _: None))
        await wait_until(lambda: server.orders)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        server.stranger.set()
    assert server.dequeued == [server.orders[0]["prompt_id"]]
    assert server.interrupted == []


async def test_its_websocket_follows_no_redirect() -> None:
    visits = list[str]()

    async def visit(request: web.Request) -> web.StreamResponse:
        visits.append(request.headers.get("Authorization", ""))
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        return socket

    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    app = web.Application()
    app.add_routes([web.get("/ws", redirect), web.get("/elsewhere", visit)])
    async with serve(app) as url:
        http = BackendHttp("ComfyUI", url, {"Authorization": "Bearer a-key"})
        with pytest.raises(BackendUnreachable, match="does not answer: TooManyRedirects"):
            async with http.open_websocket("ws", 1000):
                pass
        await http.close()
    assert visits == []


async def test_a_sampler_is_offered_if_it_and_its_scheduler_are_there() -> None:
    assert set(match_comfyui_samplers(["euler"], ["normal"])) == {"euler"}
