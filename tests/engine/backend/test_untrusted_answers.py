"""What a backend answers is bounded and checked; each failure is one sentence, without the key."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from engine.backend.backend_process import make_headers
from engine.backend.drawing import BackendModel, BackendUnreachable, DrawRequest, KeyRefused
from engine.backend.event_stream import read_events
from engine.backend.http_client import BackendHttp, clean_line, read_body
from engine.backend.model_names import guess_size, make_name, name_models
from engine.backend.openai_images import OpenAiImages, choose_size
from engine.backend.sampler_titles import match_a1111_samplers, match_comfyui_samplers, sort_samplers
from engine.contract.rejection import JobRejected
from shared.backend_harness import serve

KEY = "sk-a-secret-key"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def talk_to(answer: Answer) -> AsyncGenerator[BackendHttp]:
    """A backend that answers every request so, and a client of it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with serve(app) as url:
        http = BackendHttp("The image server", url, make_headers(KEY))
        try:
            yield http
        finally:
            await http.close()


def make_answer(status: int = 200, text: str = "{}", **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    return answer


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "text", "error", "sentence"),
    [
        (
            400,
            json.dumps({"error": {"message": f"*no* {'x' * 900}"}}),
            JobRejected,
            "refuses the picture (400): no xxx",
        ),
        (302, "", JobRejected, "refuses the picture (302)."),
        (500, json.dumps({"detail": "CUDA error"}), JobRejected, "refuses the picture (500): CUDA error."),
        (503, "", BackendUnreachable, "The image server is busy or down: it answers 503."),
        (200, "<html>", JobRejected, "answers with something that is no JSON."),
        (200, "[" * 100_000, JobRejected, "answers with something that is no JSON."),
    ],
    ids=["400", "302", "500", "503", "html", "deep"],
)
async def test_an_unusable_answer_is_one_short_sentence(
    status: int, text: str, error: type[Exception], sentence: str
) -> None:
    async with talk_to(make_answer(status, text, Location="http://127.0.0.1:1/")) as http:
        with pytest.raises(error) as raised:
            await http.get_json("v1/models")
    assert sentence in str(raised.value)
    assert len(str(raised.value)) < 300
    assert KEY not in str(raised.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_an_outage_and_is_never_shown(status: int) -> None:
    async with talk_to(make_answer(status, json.dumps({"error": {"message": f"Incorrect key: {KEY}"}}))) as http:
        with pytest.raises(KeyRefused) as raised:
            await http.post_json("v1/images/generations", {})
    assert str(raised.value) == f"The image server refuses the key of this worker ({status})."


@pytest.mark.asyncio
async def test_a_body_and_an_event_are_read_up_to_a_limit() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": a comment\r\nevent: x\r\ndata: one\r\ndata: two\r\n\r\ndata:" + b"y" * 5000 + b"\n\n")
        return response

    async with talk_to(stream) as http:
        async with http.request("GET", "x") as response:
            with pytest.raises(JobRejected, match="too long"):
                await read_body(response, 1000)
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


def test_names_of_models_and_samplers() -> None:
    assert name_models(["SD/a b.safetensors", "SD\\a b.ckpt", "ä"]) == {
        "SD-a-b": "SD/a b.safetensors",
        "SD-a-b-2": "SD\\a b.ckpt",
        "model": "ä",
    }
    assert make_name("v1-5-pruned.safetensors [6ce0161689]") == "v1-5-pruned"
    assert (guess_size("sd_xl_base"), guess_size("dreamshaper_8")) == (1024, 512)
    old = match_a1111_samplers({"DPM++ 2M", "DPM++ 2M Karras", "Euler a"}, ())
    new = match_a1111_samplers({"DPM++ 2M", "Euler a"}, {"karras", "automatic"})
    assert old["dpmpp_2m_karras"] == ("DPM++ 2M Karras", "")
    assert new["dpmpp_2m_karras"] == ("DPM++ 2M", "karras")
    assert sort_samplers(new)[0] == "dpmpp_2m_karras"
    assert set(match_comfyui_samplers(["euler"], ["normal"])) == {"euler"}
    assert clean_line("  a @everyone `b`\n<c>  ") == "a everyone b c."
