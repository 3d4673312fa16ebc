"""A short campaign with a fixed seed, and a check that a campaign sees what is broken."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bot.images.uploads.upload_decoder import DecodedImage
from fuzz.campaign import campaign, judged
from fuzz.damage import KINDS, drawn
from fuzz.report import as_json, rows
from fuzz.seeds import seeds


@pytest.mark.slow
@pytest.mark.asyncio
async def test_damaged_pictures_do_no_harm() -> None:
    outcome = await campaign(7, 150, print)
    assert outcome.breaches == [], "\n".join(rows(outcome))
    assert set(outcome.kinds) == set(KINDS)
    tallies = outcome.kinds.values()
    assert sum(one.brought for one in tallies) > 20
    assert sum(one.refused for one in tallies) > 40
    *_, total = as_json(outcome)
    assert json.loads(json.dumps(total))["holds"] is True


def test_a_seed_repeats_its_cases() -> None:
    known = seeds()
    first = [drawn(3, number, known) for number in range(60)]
    assert first == [drawn(3, number, known) for number in range(60)]
    assert first != [drawn(4, number, known) for number in range(60)]


def test_the_check_finds_every_kind_of_fault() -> None:
    def encode(picture: Image.Image, width: int = 8, sha256: str = "", **options: object) -> DecodedImage:
        out = io.BytesIO()
        picture.save(out, "PNG", **options)
        png = out.getvalue()
        return DecodedImage(png, width, 6, sha256 or hashlib.sha256(png).hexdigest())

    text, rgb = PngInfo(), Image.new("RGB", (8, 6))
    text.add_text("a", "b")
    assert judged(encode(rgb)) == ""
    assert "chunks" in judged(encode(rgb, pnginfo=text))
    assert "chunks" in judged(encode(rgb, dpi=(72, 72)))
    assert "in place of" in judged(encode(rgb, 9))
    assert "in place of" in judged(encode(Image.new("L", (8, 6))))
    assert "SHA-256" in judged(encode(rgb, sha256="0" * 64))
    intact = encode(rgb)
    cut = intact.png[:41] + b"\xff" * 8 + intact.png[49:]
    assert judged(DecodedImage(cut, 8, 6, hashlib.sha256(cut).hexdigest()))
