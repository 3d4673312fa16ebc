"""Without faults: previews, finals, commands and buttons over the wire, without a single 429."""

from __future__ import annotations

import io
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tools.loopback.members import Person
from tools.loopback.server import wait_until
from tools.loopback.world import CDN_URL

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.slow
async def test_previews_and_finals_cause_no_429(scene: Any) -> None:
    refused_before = scene.loopback.rates.refused_count
    scene.harness.painter.speed = 0.55  # a job of eleven seconds
    acts = [await scene.imagine(f"{word} apple") for word in ("red", "green", "blue")]
    await scene.wait_for_finals()
    for act in acts:
        edits = [each for each in scene.loopback.requests if act.record.token in each.path and each.method == "PATCH"]
        previews = [each for each in edits if each.files and each.files[0].filename == "developing.jpg"]
        assert len({each.files[0].payload for each in previews}) >= 6, (
            "a job of more than ten seconds has at least six previews"
        )
        assert is_png(edits[-1].files[0].payload)
        assert act.message.attachments[0]["description"].endswith("apple")
    assert scene.loopback.rates.refused_count == refused_before, "the bot caused a 429"
    assert len(scene.list_finals()) == 3


async def test_a_picture_can_be_fetched_from_its_url(scene: Any) -> None:
    await scene.imagine("terrier")
    (message,) = await scene.wait_for_finals()
    url = message.attachments[0]["url"].replace(CDN_URL, scene.loopback.root)
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        assert Image.open(io.BytesIO(await answer.read())).width > 256


async def test_upscale_autocomplete_and_queue_answer(scene: Any) -> None:
    act = await scene.imagine("terrier")
    (message,) = await scene.wait_for_finals()
    upscale_act = await scene.alice.press(message, label="U2")
    await upscale_act.wait_for_message()
    assert len(await scene.wait_for_finals(act, upscale_act)) == 2
    suggestions = await (await scene.alice.autocomplete(scene.channel, "imagine", "prompt", "terr")).wait_for_response()
    assert [each["value"] for each in suggestions.result.autocomplete_choices] == ["terrier"]
    queue = await (await scene.alice.slash(scene.channel, "queue")).wait_for_response()
    assert queue.message.is_ephemeral


async def test_a_german_member_reads_german(scene: Any) -> None:
    dora = Person(scene.loopback, "dora", scene.harness.guild, locale="de")
    suggestions = await (await dora.autocomplete(scene.channel, "imagine", "sampler", "gleichm")).wait_for_response()
    choices = suggestions.result.autocomplete_choices or []
    assert [each["name"] for each in choices] == ["DDIM: gleichmäßige Schritte"]


async def test_a_bot_process_needs_less_than_200_mb(scene: Any) -> None:
    assert await wait_until(scene.harness.bot.measure_memory) < 200e6


def is_png(payload: bytes) -> bool:
    return payload.startswith(b"\x89PNG")
