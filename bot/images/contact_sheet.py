"""Labelled pictures: the contact sheet of a ladder's keyframes, and pictures side by side.

Every picture is opened within limits and scaled down before the next is opened. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from bot.domain.errors import UserError
from bot.images.films.ladder_film import MAX_THUMBNAIL_PIXELS
from bot.images.grid import GAP, MAX_GRID_SIDE, scale_size
from bot.images.image_codec import BACKGROUND, ImageFormat, decode_image, encode_image, resize_image
from bot.images.keyframes.ladder_keyframes import NO_KEYFRAMES, KeyframeThumbnail, read_keyframes
from bot.images.labels import fit_label

MAX_CELLS = 12  # cells of a contact sheet
CELL_SIZE = 192  # pixels of a cell's longer side
HEIGHT_RANGE = (256, 768)  # least and most pixels of the height of pictures side by side
MIN_WIDTH = 96  # pixels: the least width of a picture beside others, for its label
# colour and size of the text
_TEXT_COLOUR = (232, 232, 236)
_SMALL_FONT = 18
_LARGE_FONT = 22


def make_contact_sheet(ladder: bytes, image_format: ImageFormat = "WEBP") -> bytes:
    """Return the keyframes that can be branched, each labelled with its step: up to 12, in rows of up to four.

    If there are more, choose 12 from the first to the last. Raises `UserError` (404) if there are none,
    `UnreadableImage` for a bad thumbnail.
    """
    keyframes = [keyframe for keyframe in read_keyframes(ladder) if keyframe.can_branch]
    if not keyframes:
        raise UserError(NO_KEYFRAMES, 404)
    cells = [_make_cell(keyframe.thumbnail, f"step {keyframe.step}") for keyframe in _pick_evenly(keyframes)]
    columns = min(4, len(cells)) if len(cells) != 5 else 3
    width, height = (max(sides) for sides in zip(*(cell.size for cell in cells), strict=True))
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), BACKGROUND)
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % columns * (width + GAP), index // columns * (height + GAP)))
    return encode_image(sheet, image_format, 85)


def compose_side_by_side(pictures: Sequence[bytes], labels: Sequence[str]) -> bytes:
    """Return 2 to 4 pictures side by side at equal height, each with its label under it, as PNG.

    The height is that of the highest, between 256 and 768 pixels, or less if together they would be wider than 4096. It
    cuts a label that is too long for its picture. Characters outside ASCII are dropped, since the font has no others.
    Raises `ValueError` for another number of pictures, `UnreadableImage` for bytes that are no picture.
    """
    if not 2 <= len(pictures) <= 4 or len(labels) != len(pictures):
        raise ValueError("2 to 4 pictures are compared, each with a label")
    images = [_open_bounded(image) for image in pictures]
    height = min(HEIGHT_RANGE[1], max(HEIGHT_RANGE[0], *(image.height for image in images)))
    widths = [height * image.width / image.height for image in images]
    scale = min(1.0, (MAX_GRID_SIDE - GAP * 3 - MIN_WIDTH * 4) / sum(widths))
    tiles = [
        _add_label(
            resize_image(image, (max(1, round(width * scale)), max(1, round(height * scale)))), label, _LARGE_FONT
        )
        for image, width, label in zip(images, widths, labels, strict=True)
    ]
    canvas = Image.new("RGB", (sum(image.width + GAP for image in tiles) - GAP, tiles[0].height), BACKGROUND)
    x = 0
    for tile in tiles:
        canvas.paste(tile, (x, 0))
        x += tile.width + GAP
    return encode_image(canvas, "PNG")


def _pick_evenly(keyframes: Sequence[KeyframeThumbnail]) -> list[KeyframeThumbnail]:
    if len(keyframes) <= MAX_CELLS:
        return list(keyframes)
    return [keyframes[round(index * (len(keyframes) - 1) / (MAX_CELLS - 1))] for index in range(MAX_CELLS)]


def _make_cell(thumbnail: bytes, label: str) -> Image.Image:
    pixels = decode_image(thumbnail, MAX_THUMBNAIL_PIXELS)
    return _add_label(resize_image(pixels, scale_size(*pixels.size, CELL_SIZE, CELL_SIZE)), label, _SMALL_FONT)


def _open_bounded(picture: bytes) -> Image.Image:
    pixels = decode_image(picture)
    return resize_image(pixels, scale_size(*pixels.size, 1, MAX_GRID_SIDE // 4))


def _add_label(picture: Image.Image, label: str, size: int) -> Image.Image:
    """Return the picture with its label centred below, at least as wide as a label needs."""
    width = max(picture.width, MIN_WIDTH)
    label_height = size * 3 // 2
    canvas = Image.new("RGB", (width, picture.height + label_height), BACKGROUND)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    font = ImageFont.load_default(size)
    text = fit_label(label, font, width - 8)
    ImageDraw.Draw(canvas).text(
        (width // 2, picture.height + label_height // 2), text, fill=_TEXT_COLOUR, font=font, anchor="mm"
    )
    return canvas
