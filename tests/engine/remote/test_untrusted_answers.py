"""What a backend answers is bounded and checked; each failure is one sentence, without the key."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from engine.contract import JobRejected
from engine.remote.drawing import BackendUnreachable, KeyRefused, guess_size, make_name, name_models
from engine.remote.http_client import clean_line, read_body
from shared.backend_harness import KEY, Answer, talk_to


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
async def test_a_body_is_read_up_to_a_limit() -> None:
    async with talk_to(make_answer(text="y" * 5000)) as http, http.request("GET", "x") as response:
        with pytest.raises(JobRejected, match="too long"):
            await read_body(response, 1000)


def test_names_of_models() -> None:
    assert name_models(["SD/a b.safetensors", "SD\\a b.ckpt", "ä"]) == {
        "SD-a-b": "SD/a b.safetensors",
        "SD-a-b-2": "SD\\a b.ckpt",
        "model": "ä",
    }
    assert make_name("v1-5-pruned.safetensors [6ce0161689]") == "v1-5-pruned"
    assert (guess_size("sd_xl_base"), guess_size("dreamshaper_8")) == (1024, 512)
    assert clean_line("  a @everyone `b`\n<c>  ") == "a everyone b c."
