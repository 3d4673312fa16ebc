"""OpenAI's image API, asked by OpenAI's own library: pictures, edits, streams, addresses, errors."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai.types import ImagesResponse
from PIL import Image

from bot.apis.openai import picture_addresses
from bot.apis.openai.answers import convert_picture
from bot.apis.openai.errors import shape_error
from bot.domain.errors import UserError
from bot.pictures.gallery import Gallery
from bot.services.api_keys import ApiKeys
from bot.store import DatabaseUnavailable
from bot.web.auth import terminal_key
from bot.web.middleware import GUILD, TERMINAL_ID, TOKEN_BUCKETS, Refusal
from bot.web.request_body import FORM_MEMORY, MAX_JSON_VALUES, MEMBER_LIMIT
from bot.web.sse import SHUTDOWN
from shared.clock import wait_until
from shared.web_server import pause_jobs

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


def make_picture(mode: str = "RGB", colour: tuple[int, ...] = (200, 10, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def open_answer(answer: Any, index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer.data[index].b64_json)))


def client_options(server: WebServer) -> dict[str, Any]:
    return {"base_url": f"{server.url}/v1", "api_key": terminal_key(server.settings.data), "max_retries": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(shared_server: WebServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**await asyncio.to_thread(client_options, shared_server)) as client:
        yield client


async def test_pictures_come_in_the_answer_to_both_clients(
    client: openai.AsyncOpenAI, shared_server: WebServer
) -> None:
    own = {"seed": 5, "steps": 12, "evaluations": 6, "sampler": "euler", "guidance": 2.0, "negative_prompt": "fog"}
    answer: Any = await client.images.generate(
        prompt="a lamp {on, off}", n=2, size="1024x1536", quality="high", user="ann", extra_body=own
    )
    assert [open_answer(answer, index).size for index in (0, 1)] == [(48, 72)] * 2
    assert answer.size == "48x72"
    assert (answer.output_format, answer.quality, answer.background) == ("png", "high", "opaque")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    (job,) = answer.darkroom["jobs"]
    assert (job["seed"], job["steps"], job["evaluations"], job["sampler"]) == (5, 12, 6, "euler")
    view: Any = await shared_server.services.job_views.load_view(job["id"])
    assert (view.prompt, view.task.negative) == ("a lamp {on, off}", "fog")

    def generate_at_once() -> Any:
        with openai.OpenAI(**client_options(shared_server)) as sync_client:
            return sync_client.images.generate(prompt="a lamp", n=5, output_format="webp", output_compression=50)

    answer = await asyncio.to_thread(generate_at_once)
    assert [open_answer(answer, index).format for index in range(5)] == ["WEBP"] * 5


@pytest.mark.parametrize("wanted", [0, 3])
async def test_a_stream_has_at_most_the_partial_pictures_asked_for_and_then_the_picture(
    client: openai.AsyncOpenAI, shared_server: WebServer, wanted: int
) -> None:
    worker = shared_server.workers[0]
    events = list[Any]()
    with pause_jobs(worker, step=3 if wanted else -1) as gate:
        async for event in await client.images.generate(prompt="a lamp", stream=True, partial_images=wanted, n=1):
            worker.pause_step = None
            gate.set()
            events.append(event)
    *partial_events, completed = events
    assert min(wanted, 1) <= len(partial_events) <= wanted  # a slow reader gets the newest ones alone
    assert [(event.type, event.partial_image_index) for event in partial_events] == [
        ("image_generation.partial_image", index) for index in range(len(partial_events))
    ]
    for event in partial_events:
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).format == "JPEG"
    assert completed.type == "image_generation.completed"
    assert Image.open(io.BytesIO(base64.b64decode(completed.b64_json))).size == (64, 64)
    assert completed.usage.output_tokens > 0


async def test_pictures_are_edited_in_a_mask_and_as_a_beginning(
    client: openai.AsyncOpenAI, shared_server: WebServer
) -> None:
    async def load_start(answer: Any) -> Any:
        view: Any = await shared_server.services.job_views.load_view(answer.darkroom["jobs"][0]["id"])
        return view, view.task.start

    mask = io.BytesIO()
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 32, 64))
    half.save(mask, "PNG")
    answer = await client.images.edit(image=make_picture(), mask=mask.getvalue(), prompt="a dog", output_format="jpeg")
    assert open_answer(answer).format == "JPEG"
    _, start = await load_start(answer)
    stored_mask = await shared_server.services.gallery._rendered._pictures.get(start.mask)
    with Image.open(io.BytesIO(stored_mask)) as painted:
        assert (painted.getpixel((5, 5)), painted.getpixel((60, 5))) == (255, 0)
    answer = await client.images.edit(image=[make_picture(), make_picture(colour=(1, 2, 3))], prompt="a dog")
    view, start = await load_start(answer)
    assert (view.action, len(start.pictures), start.mask) == ("blend", 2, None)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        answer = await client.images.create_variation(image=make_picture(), n=2, extra_body={"strength": "0.3"})
    _, start = await load_start(answer)
    assert (len(answer.data or ()), start.strength) == (2, 0.3)
    data_url = "data:image/png;base64," + base64.b64encode(make_picture()).decode()
    body = {"prompt": "a dog", "images": [{"image_url": data_url}], "strength": 0.4}
    answer = await client.post("/images/edits", body=body, cast_to=ImagesResponse)
    _, start = await load_start(answer)
    assert (len(start.pictures), start.strength) == (1, 0.4)
    for content in ("?", "é"):
        body["images"] = [{"image_url": f"data:image/png;base64,{content}"}]
        with pytest.raises(openai.BadRequestError, match="no picture in base64") as refusal:
            await client.post("/images/edits", body=body, cast_to=ImagesResponse)
        assert refusal.value.param == "images"
    events = [event async for event in await client.images.edit(image=make_picture(), prompt="a dog", stream=True)]
    assert [event.type for event in events] == ["image_edit.completed"]


async def test_a_large_body_has_bounded_values_and_counts_with_its_copies(
    client: openai.AsyncOpenAI, shared_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    body: dict[str, Any] = {"prompt": "a dog", "images": [{"image_url": "https://nowhere.example/1.png"}]}
    with pytest.raises(openai.APIStatusError, match="more than 65536 values") as refusal:
        await client.post("/images/edits", body={**body, "unknown": [[]] * MAX_JSON_VALUES}, cast_to=ImagesResponse)
    assert refusal.value.status_code == 413
    large_body = {**body, "n": 1.0, "unknown": "x" * 200_000}
    with pytest.raises(openai.BadRequestError, match="uploaded"):
        await client.post("/images/edits", body=large_body, cast_to=ImagesResponse)
    monkeypatch.setattr(shared_server.app[FORM_MEMORY], "_max_bytes", 300_000)
    with pytest.raises(openai.RateLimitError, match="Too many uploads"):
        await client.post("/images/edits", body=large_body, cast_to=ImagesResponse)


async def test_a_small_body_waits_for_no_turn(client: openai.AsyncOpenAI, shared_server: WebServer) -> None:
    async with shared_server.app[MEMBER_LIMIT].reserve(f"{GUILD}:{TERMINAL_ID}"):
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.with_options(timeout=10).responses.create(model="gpt-5", input="hello")
    assert refusal.value.param == "tools"


async def test_an_address_is_signed_and_ends(
    client: openai.AsyncOpenAI, shared_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await client.images.generate(prompt="a lamp", model="dall-e-3", output_format="webp")
    assert answer.data is not None
    url = str(answer.data[0].url)

    async def fetch(address: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as stranger, stranger.get(address) as response:
            return response.status, response.content_type

    with monkeypatch.context() as patch:
        patch.setattr(picture_addresses, "convert_picture", convert := AsyncMock(wraps=convert_picture))
        assert [await fetch(url) for _ in range(2)] == [(200, "image/webp")] * 2
        assert convert.await_count == 1
    body = {"prompt": "a dog", "images": [{"image_url": url}]}
    await client.post("/images/edits", body=body, cast_to=ImagesResponse)
    signature = url.rpartition("=")[2]
    buckets = shared_server.app[TOKEN_BUCKETS]
    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "_clock", lambda: now)  # no token comes back meanwhile
        while not buckets.take(signature, "film"):
            pass
        while not buckets.take(signature, "file"):
            pass
        assert (await fetch(url))[0] == 429
    for other in (url.replace("/1.webp", "/2.webp"), url.replace("webp", "png"), url[:-1], url.partition("?")[0]):
        assert (await fetch(other))[0] == 404
    monkeypatch.setattr(picture_addresses, "VALID_SECONDS", -1)
    answer = await client.images.generate(prompt="a lamp", response_format="url")
    assert answer.data is not None
    assert (await fetch(str(answer.data[0].url)))[0] == 404


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["embedded"]
    assert (await client.models.retrieve("embedded")).owned_by == "darkroom"
    with pytest.raises(openai.NotFoundError) as error:
        await client.models.retrieve("nothing")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 11}, "n"),
        ({"n": 5, "extra_body": {"seed": 1}}, "n"),
        ({"size": "1024"}, "size"),
        ({"size": "1000x100"}, "size"),
        ({"model": "nothing"}, "model"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"steps": 0}}, "steps"),
        ({"extra_body": {"sampler": "none"}}, "sampler"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"quality": "best"}, "quality"),
    ],
)
async def test_a_refusal_names_its_field(client: openai.AsyncOpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as error:
        await client.images.generate(**{"prompt": "a lamp", **options})
    assert (error.value.param, error.value.type) == (param, "invalid_request_error")
    assert "message" in cast(dict[str, Any], error.value.body)


async def test_a_form_without_a_picture_and_an_unknown_address_are_refused(
    client: openai.AsyncOpenAI, shared_server: WebServer
) -> None:
    form = aiohttp.FormData({"prompt": "a dog"}, default_to_multipart=True)
    async with shared_server.client.post(f"{shared_server.url}/v1/images/edits", data=form) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "image"
    with pytest.raises(openai.NotFoundError):
        await client.get("/nothing", cast_to=object)


async def test_a_failed_job_is_an_error_in_the_answer_and_in_the_stream(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failure:
        await client.images.generate(prompt="impossible")
    assert failure.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.APIError, match="out of bounds"):
        async for _ in await client.images.generate(prompt="impossible", stream=True):
            pass


async def test_a_client_that_goes_cancels_its_job(client: openai.AsyncOpenAI, shared_server: WebServer) -> None:
    worker = shared_server.workers[0]
    worker.step_gate.clear()
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=1).images.generate(prompt="left alone")
    worker.step_gate.set()
    async with asyncio.timeout(20):
        while (view := (await shared_server.services.job_views.load_recent("local", 1))[0]).state != "cancelled":
            await asyncio.sleep(0.02)
    assert view.prompt == "left alone"


@pytest.mark.parametrize(
    ("error", "kind"),
    [(UserError("It is held.", 403), "permission_error"), (DatabaseUnavailable("gone"), "server_error")],
)
async def test_a_stream_tells_why_a_picture_cannot_be_read_any_more(
    client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    monkeypatch.setattr(Gallery, "read_picture", AsyncMock(side_effect=error))
    with pytest.raises(openai.APIError) as failure:
        async for _ in await client.images.generate(prompt="a lamp", stream=True):
            pass
    assert failure.value.type == kind


async def test_a_restart_keeps_the_jobs_and_clients_do_not_ask_again(
    client: openai.AsyncOpenAI, shared_server: WebServer
) -> None:
    async def read_stream() -> list[Any]:
        return [event async for event in await client.images.generate(prompt="a lamp", stream=True)]

    closing = shared_server.app[SHUTDOWN]
    with pause_jobs(shared_server.workers[0]) as gate:
        waiting = [asyncio.create_task(client.images.generate(prompt="a lamp")), asyncio.create_task(read_stream())]
        await wait_until(lambda: len(shared_server.services.feed._subscriptions) == len(waiting))
        closing.set()
        try:
            async with asyncio.timeout(20):
                answer, stream_error = await asyncio.gather(*waiting, return_exceptions=True)
        finally:
            closing.clear()
        assert isinstance(answer, openai.InternalServerError)
        assert (answer.status_code, answer.response.headers["x-should-retry"]) == (503, "false")
        assert isinstance(stream_error, openai.APIError)
        assert "restarting" in stream_error.message
        gate.set()
    for view in await shared_server.services.job_views.load_recent("local", 2):
        assert (await shared_server.wait_for_end(view.id))["state"] == "finished"


async def test_a_key_that_is_revoked_meanwhile_gets_no_pictures(shared_server: WebServer) -> None:
    keys = shared_server.services.get(ApiKeys)
    secret = await keys.add(await keys.prepare("leaked", ["imagine"]))
    options = {**await asyncio.to_thread(client_options, shared_server), "api_key": secret}
    with pause_jobs(shared_server.workers[0]) as gate:
        async with openai.AsyncOpenAI(**options) as program:
            answer = asyncio.create_task(program.images.generate(prompt="a lamp"))
            await wait_until(lambda: not gate.is_set())
            await keys.revoke("leaked")
            gate.set()
            with pytest.raises(openai.AuthenticationError):
                await answer


async def test_a_streaming_client_that_goes_cancels_its_job(
    client: openai.AsyncOpenAI, shared_server: WebServer
) -> None:
    with pause_jobs(shared_server.workers[0]):
        stream = await client.images.generate(prompt="left alone", stream=True, partial_images=1)
        async for _ in stream:
            await stream.close()
            break
        (view,) = await shared_server.services.job_views.load_recent("local", 1)
        assert (await shared_server.wait_for_end(view.id))["state"] == "cancelled"


async def test_a_stranger_needs_a_key_and_a_limit_says_when_to_come_back(open_server: OpenServer) -> None:
    async with open_server(allowed_hosts=("other.example",), workers=0) as server:
        options = await asyncio.to_thread(client_options, server)
        async with openai.AsyncOpenAI(**{**options, "api_key": "wrong"}) as stranger:
            with pytest.raises(openai.AuthenticationError) as refusal:
                await stranger.models.list()
        assert refusal.value.code == "invalid_api_key"
        keys = server.services.get(ApiKeys)
        reader = await keys.add(await keys.prepare("reader", ["read"]))
        async with openai.AsyncOpenAI(**{**options, "api_key": reader}) as program:
            assert [model.id async for model in program.models.list()]
            with pytest.raises(openai.PermissionDeniedError):
                await program.images.generate(prompt="a lamp")
    limited = shape_error(Refusal(429, "Too much.", ValueError(), 90))
    assert (limited.headers["Retry-After"], limited.headers["X-Should-Retry"]) == ("90", "false")
