"""Labelled pictures: the contact sheet of a ladder's keyframes, and pictures side by side.

Every picture is opened within limits and scaled down before the next is opened. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from bot.images.film import MAX_THUMBNAIL
from bot.images.grid import GAP, MAX_SHEET, scaled
from bot.images.pixels import PAPER, Form, opened, resized, saved
from bot.images.rungs import NOWHERE, Stage, stages
from bot.refused import Refused

MOST = 12  # cells of a contact sheet
CELL = 192  # pixels of a cell's longer side
HEIGHTS = (256, 768)  # least and most pixels of the height of pictures side by side
NARROWEST = 96  # pixels: the least width of a picture beside others, for its label
LONGEST = 200  # characters of a label that are used
_INK, _SMALL, _LARGE = (232, 232, 236), 18, 22  # colour and size of the text


def contact_sheet(ladder: bytes, form: Form = "WEBP") -> bytes:
    """Return the keyframes that can be branched, each labelled with its step: up to 12, in rows of up to four.

    Of more, 12 from the first to the last. Raises `Refused` (404) if there are none, `Unreadable` for a bad thumbnail.
    """
    kept = [stage for stage in stages(ladder) if stage.branches]
    if not kept:
        raise Refused(NOWHERE, 404)
    cells = [_cell(stage.thumbnail, f"step {stage.step}") for stage in _spread(kept)]
    columns = min(4, len(cells)) if len(cells) != 5 else 3
    width, height = (max(sides) for sides in zip(*(cell.size for cell in cells), strict=True))
    rows = math.ceil(len(cells) / columns)
    made = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), PAPER)
    for place, cell in enumerate(cells):
        made.paste(cell, (place % columns * (width + GAP), place // columns * (height + GAP)))
    return saved(made, form, 85)


def compared(pictures: Sequence[bytes], labels: Sequence[str]) -> bytes:
    """Return 2 to 4 pictures side by side at equal height, each with its label under it, as PNG.

    The height is that of the highest, between 256 and 768 pixels, less if they would be wider than 4096. A label that
    is too long for its picture is cut. Characters outside ASCII are dropped, since the font has no others. Raises
    `ValueError` for other numbers, `Unreadable` for what is no picture.
    """
    if not 2 <= len(pictures) <= 4 or len(labels) != len(pictures):
        raise ValueError("2 to 4 pictures are compared, each with a label")
    small = [_bounded(one) for one in pictures]
    height = min(HEIGHTS[1], max(HEIGHTS[0], *(one.height for one in small)))
    widths = [height * one.width / one.height for one in small]
    share = min(1.0, (MAX_SHEET - GAP * 3 - NARROWEST * 4) / sum(widths))
    tiles = [
        _labelled(resized(one, (max(1, round(width * share)), max(1, round(height * share)))), label, _LARGE)
        for one, width, label in zip(small, widths, labels, strict=True)
    ]
    made = Image.new("RGB", (sum(one.width + GAP for one in tiles) - GAP, tiles[0].height), PAPER)
    at = 0
    for tile in tiles:
        made.paste(tile, (at, 0))
        at += tile.width + GAP
    return saved(made, "PNG")


def _spread(found: Sequence[Stage]) -> list[Stage]:
    if len(found) <= MOST:
        return list(found)
    return [found[round(place * (len(found) - 1) / (MOST - 1))] for place in range(MOST)]


def _cell(thumbnail: bytes, label: str) -> Image.Image:
    pixels = opened(thumbnail, MAX_THUMBNAIL)
    return _labelled(resized(pixels, scaled(*pixels.size, CELL, CELL)), label, _SMALL)


def _bounded(picture: bytes) -> Image.Image:
    pixels = opened(picture)
    return resized(pixels, scaled(*pixels.size, 1, MAX_SHEET // 4))


def _labelled(picture: Image.Image, label: str, size: int) -> Image.Image:
    """Return the picture with its label centred below, at least as wide as a label needs."""
    width, strip = max(picture.width, NARROWEST), size * 3 // 2
    made = Image.new("RGB", (width, picture.height + strip), PAPER)
    made.paste(picture, ((width - picture.width) // 2, 0))
    font = ImageFont.load_default(size)
    text = _cut(_plain(label), font, width - 8)
    ImageDraw.Draw(made).text((width // 2, picture.height + strip // 2), text, fill=_INK, font=font, anchor="mm")
    return made


def _plain(label: str) -> str:
    letters = unicodedata.normalize("NFKD", label[:LONGEST]).encode("ascii", "ignore").decode()
    return " ".join("".join(one if one.isprintable() else " " for one in letters).split())


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
