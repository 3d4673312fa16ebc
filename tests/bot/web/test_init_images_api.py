"""Init images in a form over HTTP: single, blended, with a mask; what is refused; and films in every format."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from PIL import Image

from bot.domain.errors import UserError
from bot.pictures.animation import MEDIA_TYPES, available_formats
from bot.services import Services
from bot.web import request_body
from bot.web.request_body import MEMBER_LIMIT, FormMemory
from shared.picture_files import make_png
from shared.web_server import PAGE_HEADERS, make_form, send_form
from tools.painter import paint_solid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio


async def test_one_init_image_starts_a_job_without_a_prompt(server: WebServer) -> None:
    status, reply = await send_form(
        server, "/api/jobs", make_form({"prompt": "", "strength": 0.4}, ("picture", make_png(form="JPEG")))
    )
    assert status == 201, reply
    job = await server.wait_for_end(reply["id"])
    assert job["state"] == "finished"
    assert job["action"] == "imagine"
    assert job["start"] == {"pictures": 1, "strength": 0.4, "mask": False}


@pytest.mark.slow
async def test_several_pictures_are_blended_and_a_mask_keeps_a_part(server: WebServer) -> None:
    pictures = [("picture", make_png(colour=colour)) for colour in ("#c33", "#3a5", "#36c")]
    status, reply = await send_form(server, "/api/jobs", make_form({"prompt": ""}, *pictures))
    assert status == 201, reply
    job = await server.wait_for_end(reply["id"])
    assert (job["action"], job["start"]["pictures"]) == ("blend", 3)
    status, reply = await send_form(
        server,
        "/api/jobs",
        make_form({"prompt": "a lamp"}, ("picture", make_png()), ("mask", make_png(colour="white"))),
    )
    assert status == 201, reply
    assert (await server.wait_for_end(reply["id"]))["start"]["mask"]


async def test_a_picture_may_be_larger_than_a_json_body(server: WebServer) -> None:
    noise = io.BytesIO()
    Image.effect_noise((512, 512), 80).convert("RGB").save(noise, "PNG")
    assert len(noise.getvalue()) > 128 * 1024
    status, reply = await send_form(server, "/api/jobs", make_form({"prompt": "a lamp"}, ("picture", noise.getvalue())))
    assert status == 201, reply


@pytest.mark.slow
async def test_a_finished_picture_can_be_an_init_image(server: WebServer) -> None:
    first = await server.wait_for_end(await server.imagine("terrier", count=2))
    status, reply = await server.request_json(
        "POST", "/api/jobs", {"prompt": "a cat", "init_images": [f"{first['id']}/2"]}
    )
    assert status == 201, reply
    assert (await server.wait_for_end(reply["id"]))["start"]["pictures"] == 1


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("picture", b"no picture at all")], "picture"),
        ([("picture", b"")], "empty"),
        ([("picture", make_png())] * 6, "5 pictures"),
        ([("sketch", make_png())], "no other"),
        ([("picture", make_png()), ("mask", make_png()), ("mask", make_png())], "one `mask`"),
    ],
)
async def test_an_invalid_form_is_refused_in_one_sentence(
    server: WebServer, files: list[tuple[str, bytes]], words: str
) -> None:
    status, reply = await send_form(server, "/api/jobs", make_form({"prompt": "a"}, *files))
    assert 400 <= status < 500
    assert words in reply["error"]
    assert (await server.request_json("GET", "/api/jobs"))[1]["jobs"] == []


@pytest.mark.slow
async def test_another_sites_form_is_refused(server: WebServer) -> None:
    data = make_form({"prompt": "a"}, ("picture", make_png()))
    async with aiohttp.ClientSession() as browser, browser.post(f"{server.url}/api/jobs", data=data) as answer:
        assert answer.status == 403
    data = make_form({"prompt": "a"}, ("picture", make_png()))
    assert (await send_form(server, "/api/jobs", data, {**PAGE_HEADERS, "Origin": "https://evil.example"}))[0] == 403


async def test_a_part_of_a_picture_is_inpainted(server: WebServer) -> None:
    job = await server.wait_for_end(await server.imagine("terrier --seed 7", count=2))
    address = f"/api/jobs/{job['id']}/edit/2"
    status, reply = await send_form(
        server, address, make_form({"prompt": "a cat", "strength": 0.8}, ("mask", make_png(colour="white")))
    )
    assert status == 201, reply
    child = await server.wait_for_end(reply["id"])
    assert (child["action"], child["parent"]) == ("edit", {"id": job["id"], "picture": 2})
    assert child["start"] == {"pictures": 1, "strength": 0.8, "mask": True}
    assert (await send_form(server, address, make_form({"prompt": "a cat"})))[0] == 400


async def test_a_wide_picture_is_made_a_square(server: WebServer) -> None:
    server.workers[0].paint = paint_solid
    job = await server.wait_for_end(await server.imagine("terrier --ar 2:1 --count 1"))
    address = f"/api/jobs/{job['id']}/zoom/1"
    status, reply = await server.request_json("POST", address, {"square": True})
    assert status == 201, reply
    child = await server.wait_for_end(reply["id"])
    assert (child["action"], child["pictures"][0]["width"]) == ("zoom", child["pictures"][0]["height"])
    status, reply = await server.request_json("POST", f"/api/jobs/{child['id']}/zoom/1", {"square": True})
    assert (status, reply["error"]) == (422, "This picture is a square already.")


@pytest.mark.slow
async def test_zoom_pan_and_branch_start_from_a_picture(server: WebServer) -> None:
    job = await server.wait_for_end(await server.imagine("terrier --seed 7 --count 2"))
    assert job["prompt_text"] == "terrier"
    base = f"/api/jobs/{job['id']}"
    steps = (await server.request_json("GET", job["pictures"][1]["branch"]))[1]["steps"]
    requests = {
        "zoom": {"factor": 1.5},
        "pan": {"direction": "up"},
        "branch": {"step": steps[1], "steps": 48, "raw": True},
    }
    child: dict[str, Any] = {}
    for verb, body in requests.items():
        status, reply = await server.request_json("POST", f"{base}/{verb}/2", body)
        assert status == 201, reply
        child = await server.wait_for_end(reply["id"])
        assert (child["state"], child["action"], child["parent"]["picture"]) == ("finished", verb, 2)
    assert child["start"] == {"step": steps[1], "new_noise": False}
    assert (child["steps"], child["stopped_at"]) == (48, None)
    assert (len(job["styles"]), child["styles"]) == (2, [])  # `raw`


@pytest.mark.slow
async def test_films_come_in_every_available_format(server: WebServer) -> None:
    job = await server.wait_for_end(await server.imagine("terrier --count 1"))
    assert set(job["films"]) == set(available_formats()) >= {"webp", "gif"}
    urls = [*job["films"].items(), ("webp", job["pictures"][0]["dissolve"]), ("webp", job["pictures"][0]["round_trip"])]
    for kind, address in urls:
        async with server.client.get(server.url + address) as answer:
            content = await answer.read()
            assert (answer.status, answer.content_type) == (200, MEDIA_TYPES[kind])
        if kind != "mp4":
            with Image.open(io.BytesIO(content)) as film:
                assert (film.format, film.n_frames > 4) == (kind.upper(), True)  # type: ignore[attr-defined]
    status, _ = await server.request_json("GET", f"/api/jobs/{job['id']}/film.exe")
    assert status == 404


async def test_a_prompt_may_begin_with_the_address_of_a_picture_on_the_page(server: WebServer) -> None:
    first = await server.wait_for_end(await server.imagine("terrier", count=2))
    address = f"{server.url}/api/jobs/{first['id']}/pictures/2.png"
    job = await server.wait_for_end(await server.imagine(f"{address} a cat --iw 1"))
    assert (job["action"], job["prompt"]) == ("imagine", "a cat --iw 1")
    assert job["start"] == {"pictures": 1, "strength": 0.6, "mask": False}
    status, reply = await server.request_json("POST", "/api/jobs", {"prompt": "https://evil.example/a.png a cat"})
    assert (status, "Only pictures that were uploaded" in reply["error"]) == (422, True)


async def test_a_visitors_second_form_waits_unread_and_another_visitors_does_not(server: WebServer) -> None:
    remainder_gate = asyncio.Event()
    head = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"prompt": "a lamp"}\r\n--x\r\n'
    part = b'Content-Disposition: form-data; name="picture"; filename="a"\r\n\r\n' + make_png() + b"\r\n--x--\r\n"

    async def stream_slowly() -> AsyncIterator[bytes]:
        yield head
        await remainder_gate.wait()
        yield part

    async def send_slowly() -> int:
        kind = {**PAGE_HEADERS, "Content-Type": "multipart/form-data; boundary=x"}
        async with server.client.post(f"{server.url}/api/jobs", data=stream_slowly(), headers=kind) as answer:
            return answer.status

    first = asyncio.create_task(send_slowly())
    while not server.app[MEMBER_LIMIT]._queues:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(
        send_form(server, "/api/jobs", make_form({"prompt": "a cat"}, ("picture", make_png())))
    )
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as other:
        async with other.get(server.url):
            pass
        data = make_form({"prompt": "a dog"}, ("picture", make_png()))
        async with other.post(f"{server.url}/api/jobs", data=data, headers=PAGE_HEADERS) as answer:
            assert answer.status == 201
    assert not second.done()
    remainder_gate.set()
    assert (await first, (await second)[0]) == (201, 201)
    assert server.app[MEMBER_LIMIT]._queues == {}


HALF_FORM = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"prompt": '


async def post_slowly(server: WebServer, gate: asyncio.Event) -> int:
    """Sends half of a form as a new visitor, and the rest never; returns the status. `gate`: the form may end here."""

    async def stream() -> AsyncIterator[bytes]:
        yield HALF_FORM
        await gate.wait()

    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as visitor:
        async with visitor.get(server.url):
            pass
        kind = {**PAGE_HEADERS, "Content-Type": "multipart/form-data; boundary=x"}
        async with visitor.post(f"{server.url}/api/jobs", data=stream(), headers=kind) as answer:
            return answer.status


async def test_slow_uploads_of_others_keep_nobody_from_uploading(server: WebServer) -> None:
    gate = asyncio.Event()
    slow_uploads = [asyncio.create_task(post_slowly(server, gate)) for _ in range(12)]
    while len(server.app[MEMBER_LIMIT]._queues) < len(slow_uploads):
        await asyncio.sleep(0.01)
    status, reply = await send_form(server, "/api/jobs", make_form({"prompt": "a cat"}, ("picture", make_png())))
    assert status == 201, reply
    assert not any(task.done() for task in slow_uploads)
    gate.set()
    await asyncio.gather(*slow_uploads)


async def test_an_upload_that_drips_is_given_up(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "PACE_SECONDS", 0.3)
    async with asyncio.timeout(10):
        assert await post_slowly(server, asyncio.Event()) == 408


async def test_an_upload_that_keeps_the_pace_may_take_longer(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "PACE_SECONDS", 0.6)
    monkeypatch.setattr(request_body, "PACE_BYTES", 1)
    content = make_png()
    pieces = [content[start : start + len(content) // 8 + 1] for start in range(0, len(content), len(content) // 8 + 1)]

    async def stream() -> AsyncIterator[bytes]:
        yield HALF_FORM + b'"a cat"}\r\n--x\r\n'
        yield b'Content-Disposition: form-data; name="picture"; filename="a"\r\n\r\n'
        for piece in pieces:
            yield piece
            await asyncio.sleep(0.2)
        yield b"\r\n--x--\r\n"

    kind = {**PAGE_HEADERS, "Content-Type": "multipart/form-data; boundary=x"}
    async with server.client.post(f"{server.url}/api/jobs", data=stream(), headers=kind) as answer:
        assert answer.status == 201


async def test_forms_together_take_bounded_memory() -> None:
    memory = FormMemory(max_bytes=100)
    with memory.open_form() as first, memory.open_form() as second:
        first.count_chunk(60)
        second.count_chunk(40)
        with pytest.raises(UserError, match="Too many uploads at once"):
            second.count_chunk(1)
    with memory.open_form() as form:
        form.count_chunk(100)


async def test_the_page_offers_to_describe_a_picture_only_where_something_suggests_prompts(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suggesters in ([], [object()]):
        monkeypatch.setattr(Services, "list_all", lambda _services, _kind, found=suggesters: found)
        async with server.client.get(server.url + "/") as answer:
            assert (">Describe</button>" in await answer.text()) == bool(suggesters)
