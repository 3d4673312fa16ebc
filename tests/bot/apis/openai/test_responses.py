"""OpenAI's responses with the tool `image_generation`, asked by OpenAI's own library."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import openai
import pytest
from PIL import Image

from bot.domain.errors import UserError
from bot.pictures.gallery import Gallery
from bot.web.auth import terminal_key
from shared.web_server import pause_jobs

if TYPE_CHECKING:
    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_response_has_a_picture_and_a_stream_tells_how_it_comes(
    shared_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await asyncio.to_thread(terminal_key, shared_server.settings.data)
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    async with openai.AsyncOpenAI(base_url=f"{shared_server.url}/v1", api_key=key, max_retries=0) as client:
        content: Any = [{"type": "input_text", "text": "a dog"}, {"type": "input_image", "image_url": url}]
        response = await client.responses.create(
            model="gpt-5",
            input=[{"role": "user", "content": content}],
            tools=[{"type": "image_generation", "output_format": "webp", "size": "1536x1024"}],
        )
        call: Any = response.output[0]
        assert (response.status, call.type, call.status) == ("completed", "image_generation_call", "completed")
        with Image.open(io.BytesIO(base64.b64decode(call.result))) as drawn:
            assert (drawn.format, drawn.size) == ("WEBP", (72, 48))
        options: Any = {"tools": [{"type": "image_generation", "partial_images": 1}], "stream": True}
        worker = shared_server.workers[0]
        events = list[Any]()
        with pause_jobs(worker) as gate:
            async for event in await client.responses.create(model="gpt-5", input="a lamp", **options):
                events.append(event)
                if event.type.endswith("partial_image"):
                    worker.pause_step = None
                    gate.set()
        assert [event.sequence_number for event in events] == list(range(len(events)))
        call_name = "response.image_generation_call"
        types = [event.type for event in events]
        assert types.count(f"{call_name}.partial_image") == 1
        assert [name for name in types if name != f"{call_name}.partial_image"] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            f"{call_name}.in_progress",
            f"{call_name}.generating",
            f"{call_name}.completed",
            "response.output_item.done",
            "response.completed",
        ]
        assert base64.b64decode(events[-1].response.output[0].result).startswith(b"\x89PNG")
        *_, failed = [event async for event in await client.responses.create(model="m", input="impossible", **options)]
        assert (failed.type, failed.response.error.message) == ("response.failed", "The numbers went out of bounds")
        monkeypatch.setattr(Gallery, "read_picture", AsyncMock(side_effect=UserError("It is held.", 403)))
        *_, failed = [event async for event in await client.responses.create(model="m", input="a lamp", **options)]
        assert (failed.type, failed.response.error.message) == ("response.failed", "It is held.")
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.responses.create(model="gpt-5", input="hello")
        assert refusal.value.param == "tools"
