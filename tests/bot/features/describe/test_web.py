"""Image-to-prompt: over HTTP, beside the prompt on the page, and in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from playwright.async_api import Page, expect

from bot.cli.instance_lock import RunningInstance, announce_instance, withdraw_instance
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.features.describe.cli import describe
from bot.features.describe.rules import GENERAL_VOCABULARY
from bot.features.describe.service import ImageToPrompt
from engine.contract import DescribeReply, DescribeRequest
from shared.fake_describer import FakeDescriber
from shared.picture_files import make_png
from shared.web_visitor import open_page

if TYPE_CHECKING:
    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio


async def start_describer(server: WebServer, *fitting_texts: str) -> FakeDescriber:
    """Starts a worker that knows which words fit."""
    worker = FakeDescriber(*fitting_texts)
    bus = server.workers[0].bus
    await bus.serve_describe(["embedded"], worker)
    await bus.client.flush()
    return worker


async def send_form(server: WebServer, *pictures: bytes, request: Any = None, **parts: bytes) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("request", json.dumps(request or {}), content_type="application/json")
    for name, content in (*(("picture", one) for one in pictures), *parts.items()):
        form.add_field(name, content, filename="it")
    async with server.client.post(server.url + "/api/describe", data=form, headers={"X-Darkroom": "test"}) as answer:
        return answer.status, await answer.json()


async def test_a_picture_is_answered_with_suggested_prompts(server: WebServer) -> None:
    status, reply = await send_form(server, make_png(80, 60))
    assert (status, reply["error"]) == (
        422,
        "No worker that is online has embedded in memory: draw something with it first.",
    )
    worker = await start_describer(server, "fox", "watercolor", "in the snow")
    status, reply = await send_form(server, make_png(80, 60))
    assert status == 200, reply
    assert reply["prompts"][0]["prompt"] == "fox, watercolor, in the snow"
    assert reply["prompts"][0]["error_reduction"] == pytest.approx(0.6)
    assert reply["model"] == "embedded"
    assert reply["tried_texts"] >= len(GENERAL_VOCABULARY.subjects)
    assert reply["sentence"].startswith(
        f"Of {reply['tried_texts']} candidate texts, these let embedded denoise the image best."
    )
    assert {len({request.model, "embedded"}) for request in worker.requests} == {1}
    assert await server.request_json("GET", "/api/jobs") == (200, {"jobs": []}), "nothing is kept, and no job is made"


async def day_use(server: WebServer) -> float:
    """The device-seconds that the terminal used in 24 hours."""
    report = await server.services.rule_admin.report_quotas(Member("local:terminal", "Terminal", "local"))
    return next(line.used for line in report.lines if line.setting == "cost_day")


async def test_a_description_is_charged_and_needs_quota(server: WebServer) -> None:
    await start_describer(server, "fox")
    assert await day_use(server) == 0
    assert (await send_form(server, make_png(80, 60)))[0] == 200
    assert await day_use(server) > 1
    operator = Member("local:terminal", "Terminal", "*", is_operator=True)
    await server.services.rule_admin.set_ceilings(operator, "*", cost_day="1")
    status, reply = await send_form(server, make_png(80, 60))
    assert status == 429
    assert "your limit is 1 s in 24 hours" in reply["error"]


async def test_a_description_ends_with_its_connection(server: WebServer) -> None:
    gate = asyncio.Event()
    started = asyncio.Event()

    async def wait(_request: DescribeRequest) -> DescribeReply:
        started.set()
        await gate.wait()
        return DescribeReply(error="too late")

    await server.workers[0].bus.serve_describe(["embedded"], wait)
    await server.workers[0].bus.client.flush()
    sending = asyncio.create_task(send_form(server, make_png(80, 60)))
    await started.wait()
    reserved = await day_use(server)
    sending.cancel()
    waiting = server.services.get(ImageToPrompt)._waiting_members
    async with asyncio.timeout(20):
        while waiting:
            await asyncio.sleep(0.05)
    assert 0 < await day_use(server) < reserved, "only the request that the worker has is charged"
    gate.set()


async def test_an_invalid_form_is_refused(server: WebServer) -> None:
    worker = await start_describer(server, "fox")
    assert (await send_form(server, b"no picture"))[0] == 422
    for status, reply in (
        await send_form(server),
        await send_form(server, make_png(80, 60), make_png(80, 60)),
        await send_form(server, make_png(80, 60), mask=make_png(80, 60)),
        await send_form(server, make_png(80, 60), reference=make_png(80, 60)),
    ):
        assert (status, reply["error"]) == (400, "The form needs one part `picture`, beside `request`.")
    assert (await send_form(server, make_png(80, 60), request={"model": "sdxl"}))[1][
        "error"
    ] == "There is no model called sdxl here."
    assert (await send_form(server, make_png(80, 60), request={"modell": "x"}))[0] == 400
    assert not worker.requests


@pytest.mark.slow
async def test_the_describe_button_suggests_a_prompt(page: Page, server: WebServer) -> None:
    await open_page(page, server)
    button = page.get_by_role("button", name="Describe", exact=True)
    await expect(button).to_be_hidden()
    source_chooser = page.locator(".file-chooser")
    await source_chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": make_png(80, 60)})
    await expect(button).to_be_visible()
    await button.click()
    await expect(page.locator("#notice")).to_contain_text("No worker that is online has")
    await start_describer(server, "fox", "watercolor")
    await button.click()
    suggestions = page.get_by_role("list", name="Suggested prompts").get_by_role("button")
    await expect(suggestions.first).to_have_text("fox, watercolor")
    await expect(suggestions.first).to_be_focused()
    await expect(page.locator(".suggestions-note")).to_contain_text("no captioning model is used")
    await suggestions.first.click()
    await expect(page.locator("#prompt")).to_have_value("fox, watercolor")
    await source_chooser.set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": make_png(80, 60, "#36c")})
    await expect(button).to_be_hidden()
    await expect(page.locator(".suggestions")).to_be_hidden()


@asynccontextmanager
async def announce_room(server: WebServer) -> AsyncIterator[Path]:
    data = server.settings.data
    await asyncio.to_thread(lambda: announce_instance(data, RunningInstance(server.url, os.getpid())))
    try:
        yield data
    finally:
        await asyncio.to_thread(withdraw_instance, data)


async def test_the_terminal_asks_the_running_bot(
    server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a fox.png"
    await asyncio.to_thread(picture.write_bytes, make_png(80, 60))
    with pytest.raises(UserError, match="No Darkroom is running on this data folder"):
        await asyncio.to_thread(describe, picture, data=tmp_path / "empty")
    await start_describer(server, "fox", "watercolor")
    async with announce_room(server) as data:
        await asyncio.to_thread(describe, picture, data=data)
        captured = capsys.readouterr()
        await asyncio.to_thread(describe, picture, as_json=True, data=data)
        reply = json.loads(capsys.readouterr().out)
        with pytest.raises(UserError, match="There is no model called sdxl"):
            await asyncio.to_thread(describe, picture, "sdxl", data=data)
        with pytest.raises(UserError, match="cannot be read"):
            await asyncio.to_thread(describe, tmp_path / "none.png", data=data)
    assert captured.out.splitlines()[0] == "fox, watercolor"
    assert "no captioning model is used" in captured.err
    assert "40 % less error than without words" in captured.err
    assert (reply["picture"], reply["prompts"][0]["prompt"]) == (str(picture), "fox, watercolor")
