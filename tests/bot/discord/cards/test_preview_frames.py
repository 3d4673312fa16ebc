"""Anybody may run a worker, so the bot leaves out a bad frame before it decodes it."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from bot.discord.cards import pictures
from bot.pictures.image_codec import decode_image
from bot.pictures.uploads.upload_decoder import UploadDecoder
from shared.sample_views import make_recipe

pytestmark = pytest.mark.asyncio


def make_jpeg(side: int, colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("is_sandboxed", [False, True])
async def test_broken_and_huge_frames_are_left_out_and_logged(
    caplog: pytest.LogCaptureFixture, is_sandboxed: bool
) -> None:
    decoder = UploadDecoder() if is_sandboxed else None
    view: Any = SimpleNamespace(id="JOB", task=make_recipe(4))
    frames = {
        0: make_jpeg(64, "red"),
        1: b"\xff\xd8\xff and nothing",
        2: make_jpeg(4040, "blue"),
        3: make_jpeg(4040, "blue"),
    }
    picture = await pictures.render_preview(view, frames, decoder)
    assert picture
    pixels: Any = decode_image(picture.payload)
    assert pixels.size == (516, 516)
    red, *other_colours = [pixels.getpixel(position) for position in ((100, 100), (400, 100), (100, 400), (400, 400))]
    assert red[0] > 200
    assert all(max(one) < 60 for one in other_colours)
    assert [text for text in caplog.messages if text.startswith("job")] == [
        "job JOB: 3 of its frames cannot be read and are left out"
    ]
    assert await pictures.render_preview(view, {0: b"\xff\xd8\xff"}, decoder), (
        "without a readable frame the grid has plain tiles"
    )
    if decoder is not None:
        await decoder.close()
