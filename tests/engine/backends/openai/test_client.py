"""The client of OpenAI's image API: which fields it leaves out, and for which sizes it asks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from engine.backends.openai.client import OpenAiImages, choose_size, read_events
from engine.contract import JobRejected
from engine.remote.drawing import BackendModel, DrawRequest
from shared.backend_harness import talk_to


@pytest.mark.asyncio
async def test_an_event_is_read_up_to_a_limit() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": a comment\r\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata:" + b"y" * 5000 + b"\n\n")
        return response

    async with talk_to(stream) as http:
        async with http.request("GET", "x") as response:
            assert [data async for data in read_events(response, 10_000)] == [b"one\ntwo", b"y" * 5000]
        async with http.request("GET", "x") as response:
            with pytest.raises(JobRejected, match="too long"):
                [data async for data in read_events(response, 4000)]


@pytest.mark.asyncio
async def test_a_server_without_streams_is_asked_without_them_from_then_on() -> None:
    bodies: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        if "stream" in bodies[-1]:
            return web.json_response({"error": {"message": "Unknown parameter: 'stream'."}}, status=400)
        return web.json_response({"data": [{"url": "http://127.0.0.1:1/picture.png"}]})

    model = make_model("my-diffusion")
    async with talk_to(answer) as http:
        images = OpenAiImages(http)
        for _ in range(2):
            with pytest.raises(JobRejected, match="sent no picture in its answer"):  # an address is not followed
                await images.draw(make_request(model), lambda progress: None)
    assert ["stream" in body for body in bodies] == [True, False, False]
    assert bodies[-1]["response_format"] == "b64_json"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("error", "is_left_out"),
    [
        ({"message": "Unknown parameter: 'stream'.", "param": "stream"}, True),
        ({"message": "Unrecognized request argument supplied: `stream`"}, True),
        ({"message": "The prompt “a stream of cats” is not allowed."}, False),
        ({"message": "The upstream moderation says no."}, False),
        ({"message": "The prompt says 'stream'.", "param": "prompt"}, False),
    ],
)
async def test_a_field_is_left_out_only_where_the_model_refuses_it(error: dict[str, str], *, is_left_out: bool) -> None:
    bodies: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        if bodies[-1]["model"] == "one-diffusion" and "stream" in bodies[-1]:
            return web.json_response({"error": error}, status=400)
        return web.json_response({"data": [{}]})

    async with talk_to(answer) as http:
        images = OpenAiImages(http)
        for title in ("one-diffusion", "other-diffusion"):
            with pytest.raises(JobRejected):
                await images.draw(replace(make_request(make_model(title)), prompt="A Stream of cats"), lambda _: None)
    asked = [(body["model"], "stream" in body) for body in bodies]
    assert asked[0] == ("one-diffusion", True)
    assert asked[-1] == ("other-diffusion", True), "the other model streams"
    assert (("one-diffusion", False) in asked) is is_left_out


def make_model(title: str) -> BackendModel:
    return BackendModel(title, title, 1024, 64, 1024 * 1536, ("native",), 4, 1.0)


def make_request(model: BackendModel, width: int = 1024, height: int = 1024) -> DrawRequest:
    return DrawRequest(model, "a lamp", "", 1, 4, 1.0, "native", width, height)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("title", "size", "asked"),
    [
        ("gpt-image-1", (1216, 832), (1536, 1024)),
        ("gpt-image-1", (832, 1216), (1024, 1536)),
        ("dall-e-2", (512, 512), (512, 512)),
        ("dall-e-3", (1344, 768), (1792, 1024)),
        ("my-diffusion", (960, 640), (960, 640)),
    ],
)
def test_a_model_of_few_sizes_is_asked_for_the_nearest(
    title: str, size: tuple[int, int], asked: tuple[int, int]
) -> None:
    assert choose_size(make_request(make_model(title), *size)) == asked
