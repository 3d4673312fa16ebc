"""Nothing goes wrong: previews, finals, commands and buttons over the wire, without one request too many."""

from __future__ import annotations

import io
from typing import Any

import aiohttp
import pytest
from PIL import Image

from loopback.server import until
from loopback.world import EVERYWHERE

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_previews_and_finals_without_one_429(scene: Any) -> None:
    refused = scene.loopback.rates.refused
    scene.street.painter.speed = 0.55  # a job of eleven seconds
    acts = [await scene.imagine(f"{word} apple") for word in ("red", "green", "blue")]
    await scene.shown()
    for act in acts:
        edits = [each for each in scene.loopback.asked if act.record.token in each.path and each.method == "PATCH"]
        previews = [each for each in edits if each.files and each.files[0].filename == "developing.jpg"]
        assert len({each.files[0].payload for each in previews}) >= 6, "previews of a job of more than ten seconds"
        assert is_png(edits[-1].files[0].payload)
        assert act.message.attachments[0]["description"].endswith("apple")
    assert scene.loopback.rates.refused == refused, "we caused a 429"
    assert len(scene.finals()) == 3


async def test_a_picture_can_be_fetched_from_its_address(scene: Any) -> None:
    await scene.imagine("terrier")
    (message,) = await scene.shown()
    url = message.attachments[0]["url"].replace(EVERYWHERE, scene.loopback.root)
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        assert Image.open(io.BytesIO(await answer.read())).width > 256


async def test_buttons_and_suggestions(scene: Any) -> None:
    act = await scene.imagine("terrier")
    (message,) = await scene.shown()
    larger = await scene.alice.press(message, label="U2")
    await larger.answer()
    assert len(await scene.shown(act, larger)) == 2
    typing = await (await scene.alice.autocomplete(scene.channel, "imagine", "prompt", "terr")).taken()
    assert [each["value"] for each in typing.result.autocomplete_choices] == ["terrier"]
    asked = await (await scene.alice.slash(scene.channel, "queue")).taken()
    assert asked.message.is_ephemeral


async def test_what_a_bot_process_weighs(scene: Any) -> None:
    assert await until(scene.street.bot.memory) < 200e6


def is_png(payload: bytes) -> bool:
    return payload.startswith(b"\x89PNG")
