"""One picture by AUTOMATIC1111's API: `bot.apis.a1111`."""

from __future__ import annotations

import base64

import aiohttp

from benchmarks.clients.openai_requests import STEPS

WEBUI_NAME = "a picture by AUTOMATIC1111's API ÷ by POST /api/jobs"


async def draw_by_webui_api(client: aiohttp.ClientSession) -> None:
    """Draw a picture, and decode it."""
    async with client.post("/sdapi/v1/txt2img", json={"prompt": "a lamp", "steps": STEPS}) as response:
        response.raise_for_status()
        answer = await response.json()
    assert base64.b64decode(answer["images"][0])
