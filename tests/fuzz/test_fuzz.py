"""A short campaign with a fixed seed, and a check that a campaign sees what is broken."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bot.pictures.uploads.upload_decoder import DecodedImage
from tools.fuzz.campaign import find_problem, run_campaign
from tools.fuzz.damage import KINDS, draw_case
from tools.fuzz.report import as_json, format_rows
from tools.fuzz.seeds import make_seeds


@pytest.mark.slow
@pytest.mark.asyncio
async def test_damaged_pictures_do_no_harm() -> None:
    outcome = await run_campaign(7, 150, print)
    assert outcome.failures == [], "\n".join(format_rows(outcome))
    assert set(outcome.kinds) == set(KINDS)
    tallies = outcome.kinds.values()
    assert sum(one.accepted for one in tallies) > 20
    assert sum(one.refused for one in tallies) > 40
    *_, total = as_json(outcome)
    assert json.loads(json.dumps(total))["holds"] is True


def test_a_seed_repeats_its_cases() -> None:
    seed_pictures = make_seeds()
    first = [draw_case(3, number, seed_pictures) for number in range(60)]
    assert first == [draw_case(3, number, seed_pictures) for number in range(60)]
    assert first != [draw_case(4, number, seed_pictures) for number in range(60)]


def test_the_check_finds_every_kind_of_fault() -> None:
    def encode(picture: Image.Image, width: int = 8, sha256: str = "", **options: object) -> DecodedImage:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", **options)
        content = buffer.getvalue()
        return DecodedImage(content, width, 6, sha256 or hashlib.sha256(content).hexdigest())

    text = PngInfo()
    rgb = Image.new("RGB", (8, 6))
    text.add_text("a", "b")
    assert find_problem(encode(rgb)) == ""
    assert "chunks" in find_problem(encode(rgb, pnginfo=text))
    assert "chunks" in find_problem(encode(rgb, dpi=(72, 72)))
    assert "in place of" in find_problem(encode(rgb, 9))
    assert "in place of" in find_problem(encode(Image.new("L", (8, 6))))
    assert "SHA-256" in find_problem(encode(rgb, sha256="0" * 64))
    valid_picture = encode(rgb)
    damaged_picture = valid_picture.png[:41] + b"\xff" * 8 + valid_picture.png[49:]
    assert find_problem(DecodedImage(damaged_picture, 8, 6, hashlib.sha256(damaged_picture).hexdigest()))
