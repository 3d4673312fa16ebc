"""AUTOMATIC1111's API, asked by the package `webuiapi`, which its clients use."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
import webuiapi
from PIL import Image

from bot.domain.feature import PromptSuggester
from bot.pictures.image_codec import ImageFormat, encode_image
from bot.services import Services
from bot.services.api_keys import PREFIX, ApiKeys
from shared.clock import wait_until
from shared.model_parts import MODEL_PARTS
from shared.web_server import pause_jobs

if TYPE_CHECKING:
    from bot.domain.dto import Member
    from shared.web_server import OpenServer, WebServer

on_shared_server = pytest.mark.asyncio(loop_scope="module")
CLIENT_SECONDS = 30


@contextlib.asynccontextmanager
async def connect(server: WebServer, **credentials: str) -> AsyncGenerator[webuiapi.WebUIApi]:
    """A client as a program makes it. It asks for the scripts at once."""
    api = await call(webuiapi.WebUIApi, port=server.port, sampler="Euler", steps=6, **credentials)
    session: Any = api.session
    session.request = partial(session.request, timeout=CLIENT_SECONDS)  # a thread cannot be cancelled
    try:
        yield api
    finally:
        api.session.close()


def encode(picture: Image.Image, image_format: ImageFormat = "PNG", text: str = "") -> str:
    return base64.b64encode(encode_image(picture, image_format, text=text)).decode()


async def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The client blocks: it runs in a thread."""
    return await asyncio.to_thread(function, *arguments, **options)


def make_picture(size: tuple[int, int] = (64, 64), colour: str = "#c33", mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


@on_shared_server
async def test_a_program_draws_pictures(shared_server: WebServer) -> None:
    async with connect(shared_server) as api:
        result = await call(
            api.txt2img,
            prompt="a (red:1.2) fox",
            negative_prompt="fog",
            seed=7,
            steps=9,
            cfg_scale=5,
            n_iter=3,
            batch_size=2,
        )
    assert len(result.images) == 6
    assert {image.size for image in result.images} == {(64, 64)}
    assert result.info["all_seeds"] == [7, 8, 9, 10, 11, 12]
    assert (result.info["sampler_name"], result.info["steps"], result.info["cfg_scale"]) == ("Euler", 9, 5)
    assert (result.info["prompt"], result.info["negative_prompt"]) == ("a (red:1.2) fox", "fog")
    assert len(result.info["infotexts"]) == 6
    assert (result.parameters["n_iter"], result.parameters["steps"]) == (3, 9)


@on_shared_server
async def test_a_program_draws_from_pictures_and_enlarges_them(shared_server: WebServer) -> None:
    mask = make_picture(mode="L", colour="#000")
    mask.paste(255, (0, 0, 32, 64))
    async with connect(shared_server) as api:
        result = await call(
            api.img2img,
            images=[make_picture()],
            mask_image=mask,
            inpainting_mask_invert=1,
            prompt="a fox",
            denoising_strength=0.5,
            seed=3,
        )
        enlarged = await call(
            api.extra_single_image, make_picture((40, 20)), upscaler_1="Lanczos", upscaling_resize=2.5
        )
        several = await call(
            api.extra_batch_images,
            [make_picture((40, 20)), make_picture((20, 20))],
            upscaler_1="Lanczos",
            resize_mode=1,
            upscaling_resize_w=80,
            upscaling_resize_h=60,
        )
    assert result.image.size == (64, 64)
    assert result.info["denoising_strength"] == 0.5
    assert "init_images" not in {name for name, value in result.parameters.items() if value}
    assert enlarged.image.size == (100, 50)
    assert [image.size for image in several.images] == [(80, 60), (80, 60)]


@on_shared_server
async def test_a_program_sees_previews_and_interrupts_its_own_jobs_alone(shared_server: WebServer) -> None:
    elsewhere = await shared_server.imagine("a lamp --count 1", steps=1000)
    async with connect(shared_server) as api:
        drawing = asyncio.create_task(call(api.txt2img, prompt="a fox", seed=1, steps=1000, batch_size=2))
        state: dict[str, Any] = {}
        async with asyncio.timeout(20):
            while not state.get("current_image"):
                state = await call(api.get_progress)
        assert 0 < state["progress"] < 1
        assert state["state"]["job"] == "scripts_txt2img"
        assert (state["state"]["job_count"], state["state"]["sampling_steps"]) == (1, 1000)
        assert Image.open(io.BytesIO(base64.b64decode(state["current_image"]))).format == "JPEG"
        _, idle_elsewhere = await shared_server.request_json("GET", "/sdapi/v1/progress")
        assert idle_elsewhere["state"]["job_count"] == 0
        await shared_server.request_json("POST", "/sdapi/v1/interrupt")
        assert (await call(api.get_progress))["state"]["interrupted"] is False
        assert await call(api.interrupt) == {}
        with pytest.raises(RuntimeError) as raised:
            await drawing
        assert raised.value.args[0] == 409
        idle = await call(api.get_progress)
        assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    _, job = await shared_server.request_json("GET", f"/api/jobs/{elsewhere}")
    assert job["state"] == "running"
    await shared_server.request_json("DELETE", f"/api/jobs/{elsewhere}")


@on_shared_server
async def test_progress_and_interrupt_know_the_keys_apart(shared_server: WebServer) -> None:
    keys = shared_server.services.get(ApiKeys)
    secrets = [await keys.add(await keys.prepare(name, ["imagine", "read"])) for name in ("ann", "bob")]
    async with contextlib.AsyncExitStack() as stack:
        gate = stack.enter_context(pause_jobs(shared_server.workers[0]))
        ann, bob = [
            await stack.enter_async_context(connect(shared_server, username="any", password=secret))
            for secret in secrets
        ]
        bobs = asyncio.create_task(call(bob.txt2img, prompt="a fox", seed=1))
        await wait_until(lambda: not gate.is_set())
        assert (await call(ann.get_progress))["progress"] == 0
        anns = asyncio.create_task(call(ann.txt2img, prompt="a dog", seed=2))
        while not (await call(ann.get_progress))["progress"]:
            pass
        await call(ann.interrupt)
        with pytest.raises(RuntimeError):
            await anns
        assert (await call(bob.get_progress))["progress"] > 0
        gate.set()
        assert (await bobs).info["prompt"] == "a fox"


@on_shared_server
async def test_skip_ends_one_job_and_the_others_are_returned(shared_server: WebServer) -> None:
    worker = shared_server.workers[0]
    worker.pause_step = 2
    async with connect(shared_server) as api:
        drawing = asyncio.create_task(call(api.txt2img, prompt="a fox", seed=1, batch_size=5))
        await wait_until(lambda: not worker.step_gate.is_set())
        await call(api.skip)
        worker.pause_step = None
        worker.step_gate.set()
        assert (await drawing).info["all_seeds"] == [5]


@on_shared_server
async def test_a_client_that_goes_cancels_its_jobs(shared_server: WebServer) -> None:
    worker = shared_server.workers[0]
    worker.pause_step = 2
    async with aiohttp.ClientSession() as client:
        sending = asyncio.create_task(client.post(f"{shared_server.url}/sdapi/v1/txt2img", json={"prompt": "a fox"}))
        await wait_until(lambda: not worker.step_gate.is_set())
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    _, jobs = await shared_server.request_json("GET", "/api/jobs")
    assert (await shared_server.wait_for_end(jobs["jobs"][0]["id"]))["state"] == "cancelled"
    worker.pause_step = None
    worker.step_gate.set()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_program_lists_and_chooses(server: WebServer) -> None:
    other_model = msgspec.structs.replace(server.workers[0].model, name="dreamer", samplers=("euler",), sampler="euler")
    server.workers[0].models = (server.workers[0].model, other_model)
    await wait_until(lambda: len(server.services.catalog.entries()) == 2)
    guest = {"Cookie": await server.start_session("open")}
    async with connect(server) as api:
        assert api.has_controlnet is False
        assert await call(api.util_get_model_names) == ["dreamer", "embedded"]
        assert await call(api.util_get_current_model) == "embedded"
        await call(api.util_set_model, "Dreamer")
        assert await call(api.util_get_current_model) == "dreamer"
        assert [each["name"] for each in await call(api.get_samplers)] == ["Euler", "DDPM", "DDIM", "DPM++ 2M"]
        assert await call(api.util_get_scheduler_names) == ["automatic", "karras", "uniform"]
        assert [each["name"] for each in await call(api.get_upscalers)] == ["None", "Lanczos", "Darkroom"]
        for listing in (
            api.get_loras,
            api.get_sd_vae,
            api.get_latent_upscale_modes,
            api.get_hypernetworks,
            api.get_face_restorers,
            api.get_realesrgan_models,
            api.get_prompt_styles,
        ):
            assert await call(listing) == []
        assert await call(api.get_embeddings) == {"loaded": {}, "skipped": {}}
        assert await call(api.refresh_checkpoints) is None
        await call(api.util_wait_for_ready)
        result = await call(api.txt2img, prompt="a fox", seed=1)
        assert result.info["sd_model_name"] == "dreamer"
    async with aiohttp.ClientSession(headers=guest) as client, client.get(f"{server.url}/sdapi/v1/options") as answer:
        assert (await answer.json())["sd_model_checkpoint"] == "embedded"


@on_shared_server
async def test_units_of_controlnet_are_followed(shared_server: WebServer) -> None:
    (worker,) = shared_server.workers
    worker.model = msgspec.structs.replace(worker.model, **MODEL_PARTS)
    await wait_until(lambda: bool(shared_server.services.catalog.find_entry(None).profile.controls))
    async with connect(shared_server) as api:
        names = await call(api.controlnet_model_list)
        assert names == [part.name for part in (*worker.model.controls, *worker.model.references)]
        assert await call(api.controlnet_version) == 2
        modules = await call(api.controlnet_module_list)
        picture: Any = make_picture()
        unit = webuiapi.ControlNetUnit(image=picture, module=modules[0], model=names[0], weight=0.7)
        await call(api.txt2img, prompt="a fox", seed=1, controlnet_units=[unit])
    _, jobs = await shared_server.request_json("GET", "/api/jobs")
    (control,) = jobs["jobs"][0]["controls"]
    assert (control["name"], control["scale"]) == (names[0], 0.7)


@on_shared_server
async def test_a_picture_tells_how_it_was_made(shared_server: WebServer) -> None:
    picture = make_picture()
    picture.info["parameters"] = "a fox\nSteps: 20, Sampler: Euler, Seed: 5"
    async with connect(shared_server) as api:
        told = await call(api.png_info, picture)
        assert told.info == picture.info["parameters"]
        assert told.parameters["Seed"] == "5"
        assert (await call(api.png_info, make_picture())).info == ""
    webp = encode(make_picture(), "WEBP", "a fox\nSteps: 9, Sampler: Euler, Seed: 6")
    _, answer = await shared_server.request_json("POST", "/sdapi/v1/png-info", {"image": webp})
    assert answer["parameters"]["Seed"] == "6", answer


@on_shared_server
async def test_a_program_gets_a_prompt_for_a_picture_where_something_suggests_prompts(
    shared_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bytes, str]] = []

    class FakeSuggester(PromptSuggester):
        async def list_prompts(self, picture: bytes, member: Member, model: str) -> list[str]:
            asked.append((picture, model))
            return [] if len(asked) > 1 else ["fox, watercolor", "fox"]

    suggesters: list[object] = [FakeSuggester()]
    monkeypatch.setattr(Services, "list_all", lambda _services, _kind: suggesters)
    picture = encode(make_picture())
    for caption in ("fox, watercolor", ""):
        answer = await shared_server.request_json("POST", "/sdapi/v1/interrogate", {"image": picture})
        assert answer == (200, {"caption": caption})
    assert asked == [(base64.b64decode(picture), "embedded")] * 2
    suggesters.clear()
    status, answer = await shared_server.request_json("POST", "/sdapi/v1/interrogate", {"image": picture})
    assert (status, answer["detail"]) == (404, "This Darkroom suggests no prompts for pictures.")


@on_shared_server
async def test_errors_have_its_shape_and_one_sentence(shared_server: WebServer) -> None:
    enlarged = {"image": encode(make_picture()), "upscaler_1": "Lanczos", "upscaling_resize": 5}
    for path, body, status, detail in (
        ("txt2img", {"prompt": "a fox", "sampler_name": "PLMS"}, 404, "There is no sampler “PLMS” here:"),
        ("img2img", {"init_images": ["abc"]}, 422, "The picture is no picture in base64."),
        ("txt2img", {"prompt": "impossible", "steps": 5}, 500, "The numbers went out of bounds"),
        ("extra-single-image", enlarged, 422, "A picture is made up to 4 times as large, and this would be 5."),
        ("nothing", {}, 404, "There is nothing at this address."),
        ("img2img", {"init_images": ["é"]}, 422, "The picture is no picture in base64."),
    ):
        answer = await shared_server.request_json("POST", f"/sdapi/v1/{path}", body)
        assert (answer[0], answer[1]["detail"].startswith(detail)) == (status, True), answer


@on_shared_server
async def test_each_api_asks_for_a_key_as_its_clients_send_it(shared_server: WebServer) -> None:
    for path, scheme in (("/sdapi/v1/options", "Basic"), ("/v1/models", "Bearer"), ("/api/jobs", "Bearer")):
        mistyped = {"Authorization": f"Bearer {PREFIX}mistyped"}
        async with shared_server.client.get(shared_server.url + path, headers=mistyped) as reply:
            assert (reply.status, reply.headers["WWW-Authenticate"].partition(" ")[0]) == (401, scheme)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_closed_room_asks_for_a_key(open_server: OpenServer) -> None:
    async with open_server(allowed_hosts=("other.example",)) as server:
        keys = server.services.get(ApiKeys)
        key = await keys.add(await keys.prepare("painter", ["imagine", "read"]))
        async with server.client.get(f"{server.url}/sdapi/v1/options") as reply:
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, 'Basic realm="Darkroom"')
            assert (await reply.json())["detail"]
        async with connect(server, username="anything", password=key) as api:
            assert await call(api.util_get_current_model) == "embedded"
