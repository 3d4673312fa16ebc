"""A call that is cancelled before Darkroom has answered it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bot.apis.mcp.arguments import ImagineArguments
from bot.apis.mcp.tools import ToolCall, imagine

pytestmark = pytest.mark.asyncio


async def test_a_call_that_is_cancelled_while_its_jobs_are_submitted_cancels_them() -> None:
    arrived = asyncio.Event()
    answers = asyncio.Event()
    deleted = list[str]()

    async def submit(request: web.Request) -> web.Response:
        arrived.set()
        await answers.wait()
        return web.json_response({"ids": ["one", "two"], "notes": []})

    async def cancel(request: web.Request) -> web.Response:
        deleted.append(request.match_info["job"])
        return web.json_response({"error": "It has ended."}, status=404)

    app = web.Application()
    app.add_routes([web.post("/api/jobs", submit), web.delete("/api/jobs/{job}", cancel)])
    async with TestServer(app) as server, aiohttp.ClientSession(server.make_url("/")) as session:
        call = ToolCall(cast(Any, None), session, cast(Any, None), reads_files=False)
        task = asyncio.create_task(imagine(call, ImagineArguments.model_validate({"prompt": "a bell"})))
        await arrived.wait()
        task.cancel()
        asyncio.get_running_loop().call_soon(answers.set)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert deleted == ["one", "two"]
