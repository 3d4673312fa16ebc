"""The client of AUTOMATIC1111: what it asks for, whose progress it shows, and what it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO

import pytest
from aiohttp import ClientTimeout
from PIL import Image

from engine.backends.a1111 import client as a1111
from engine.backends.a1111.client import Automatic1111, match_a1111_samplers, strip_networks
from engine.contract import Lora
from engine.remote import http_client
from engine.remote.drawing import MAX_PICTURE_SECONDS, BackendUnreachable, DrawProgress, DrawRequest, sort_samplers
from engine.remote.http_client import DRAW_TIMEOUT, BackendHttp
from shared.backend_harness import serve
from shared.clock import wait_until
from tests.engine.backends.a1111.a1111_stand_in import A1111StandIn


@pytest.fixture(autouse=True)
def polls_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a1111, "POLL_SECONDS", 0.01)


@asynccontextmanager
async def talk_to(server: A1111StandIn, silence: float = 60.0) -> AsyncGenerator[Automatic1111]:
    async with serve(server.app) as url:
        client = Automatic1111(BackendHttp("AUTOMATIC1111", url, {}, silence))
        try:
            yield client
        finally:
            server.finish.set()
            server.answers_progress.set()
            server.answers_lists.set()
            await client.close()


async def make_request(client: Automatic1111) -> DrawRequest:
    model = (await client.list_models())[0]
    return DrawRequest(model, "a lamp", "", 7, 4, 5.0, "euler", 64, 64)


async def cancel_when(drawing: asyncio.Task[bytes], condition: Callable[[], object]) -> None:
    await wait_until(condition)
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing


@pytest.mark.asyncio
async def test_a_picture_outlives_questions_for_its_progress_that_get_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = A1111StandIn()
    async with talk_to(server) as client:
        request = await make_request(client)
        monkeypatch.setattr(http_client, "LIST_SECONDS", 0.01)
        server.answers_progress.clear()
        drawing = asyncio.create_task(client.draw(request, lambda _: None))
        await wait_until(lambda: server.questions)
        server.finish.set()
        assert Image.open(BytesIO(await drawing)).size == (64, 64)


@pytest.mark.asyncio
async def test_a_list_that_gets_no_answer_in_time_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    server = A1111StandIn()
    server.answers_lists.clear()
    monkeypatch.setattr(http_client, "LIST_SECONDS", 0.01)
    async with talk_to(server) as client:
        with pytest.raises(BackendUnreachable, match="does not answer: TimeoutError"):
            await client.list_models()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_picture_may_take_longer_than_other_answers() -> None:
    server = A1111StandIn()
    async with talk_to(server, silence=0.2) as client:
        told = list[DrawProgress]()
        drawing = asyncio.create_task(client.draw(await make_request(client), told.append))
        await wait_until(lambda: len(server.questions) >= 40 or drawing.done())
        server.finish.set()
        await drawing
    assert {each.fraction for each in told} == {0.5}


@pytest.mark.asyncio
async def test_what_others_draw_is_neither_shown_nor_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a1111, "STOP_SECONDS", 0.05)
    server = A1111StandIn()
    told = list[DrawProgress]()
    server.stranger = True
    async with talk_to(server) as client:
        request = await make_request(client)
        drawing = asyncio.create_task(client.draw(request, told.append))
        await cancel_when(drawing, lambda: len(server.questions) > 1)
        assert (told, server.interrupts) == ([], 0)
        drawing = asyncio.create_task(client.draw(request, told.append))
        await wait_until(lambda: len(server.bodies) == 2)
        await wait_until(lambda: server.questions.count(server.bodies[1]["force_task_id"]) > 1)
        server.stranger = False
        await cancel_when(drawing, lambda: told)
        assert server.interrupts == 1
    assert told[0].begins, "its price counts from its turn"
    assert told[0].preview is not None
    assert Image.open(BytesIO(told[0].preview)).getpixel((0, 0)) == (255, 0, 0)
    assert set(server.questions) == {body["force_task_id"] for body in server.bodies}


@pytest.mark.asyncio
async def test_a_server_that_tells_of_no_task_shows_no_progress_and_is_interrupted() -> None:
    server = A1111StandIn(knows_tasks=False)
    told = list[DrawProgress]()
    async with talk_to(server) as client:
        drawing = asyncio.create_task(client.draw(await make_request(client), told.append))
        await cancel_when(drawing, lambda: server.bodies)
    assert (told, server.interrupts) == ([], 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("stranger", [False, True])
async def test_what_the_api_shows_counts_only_if_it_names_our_task(stranger: bool) -> None:
    server = A1111StandIn(knows_tasks=False, names_current_task=True)
    reports = list[DrawProgress]()
    server.stranger = stranger
    async with talk_to(server) as client:
        drawing = asyncio.create_task(client.draw(await make_request(client), reports.append))
        async with asyncio.timeout(20):
            while len(server.questions) < 3:
                await asyncio.sleep(0.01)
        server.finish.set()
        await drawing
    assert bool(reports) is not stranger
    assert all(report.preview and report.fraction == 0.9 for report in reports)


@pytest.mark.asyncio
async def test_an_outage_while_it_draws_stops_what_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DRAW_TIMEOUT.sock_read == MAX_PICTURE_SECONDS
    monkeypatch.setattr(http_client, "DRAW_TIMEOUT", ClientTimeout(sock_read=0.05))
    server = A1111StandIn()
    async with talk_to(server) as client:
        with pytest.raises(BackendUnreachable):
            await client.draw(await make_request(client), lambda _: None)
    assert server.interrupts == 1


@pytest.mark.asyncio
async def test_each_picture_sets_its_clip_skip_and_loads_only_what_the_recipe_names() -> None:
    server = A1111StandIn()
    server.finish.set()
    async with talk_to(server) as client:
        request = await make_request(client)
        typed = "a lamp <lora:secret:1> <lyco:x:1> <hypernet:y"
        await client.draw(replace(request, prompt=typed, clip_skip=1, loras=(Lora("ink", 0.5),)), lambda _: None)
        await client.draw(replace(request, negative="<lora:secret:2> blurry"), lambda _: None)
    first, second = server.bodies
    assert first["prompt"].split() == ["a", "lamp", "hypernet:y", "<lora:ink:0.5>"]
    assert second["negative_prompt"].split() == ["blurry"]
    assert [body["override_settings"]["CLIP_stop_at_last_layers"] for body in server.bodies] == [2, 1]


def test_words_that_load_networks_leave_a_text_even_where_they_are_nested_or_open() -> None:
    assert strip_networks("a < b, 1:2 > 0 <mine>") == "a < b, 1:2 > 0 <mine>"
    assert strip_networks(f"<lora:{'n' * 300}:1> lamp").strip() == "lamp"
    assert strip_networks("<lo<x:y>ra:secret:1>") == "<lo ra:secret:1>", "this loads nothing"
    assert strip_networks("<hypernet:x") + " <lora:ink:1>" == " hypernet:x <lora:ink:1>"


def test_a_sampler_is_named_with_its_scheduler_or_apart_from_it() -> None:
    old = match_a1111_samplers({"DPM++ 2M", "DPM++ 2M Karras", "Euler a"}, ())
    new = match_a1111_samplers({"DPM++ 2M", "Euler a"}, {"karras", "automatic"})
    assert old["dpmpp_2m_karras"] == ("DPM++ 2M Karras", "")
    assert new["dpmpp_2m_karras"] == ("DPM++ 2M", "karras")
    assert sort_samplers(new)[0] == "dpmpp_2m_karras"
