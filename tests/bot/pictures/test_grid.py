"""Grids: size, position and colour of each picture, the same bytes twice, and refusals before decoding."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bot.pictures.grid import GAP, compose, shrink_to_fit
from bot.pictures.image_codec import BACKGROUND, ImageFormat, UnreadableImage, decode_image, encode_image

RED = (220, 20, 20)
GREEN = (20, 200, 20)
BLUE = (20, 20, 220)
WHITE = (240, 240, 240)


def picture(colour: tuple[int, ...] = RED, size: tuple[int, int] = (64, 64), form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def noise(size: tuple[int, int] = (256, 256)) -> bytes:
    noise_bytes = bytes(index * index * 7 // 5 % 251 for index in range(size[0] * size[1] * 3))
    return encode_image(Image.frombytes("RGB", size, noise_bytes), "PNG")


def pixels(payload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(payload)).convert("RGB")


@pytest.mark.parametrize(("count", "size"), [(1, (256, 256)), (2, (516, 256)), (3, (516, 516)), (4, (516, 516))])
def test_cells_are_enlarged_to_256(count: int, size: tuple[int, int]) -> None:
    assert pixels(compose([picture()] * count)).size == size


def test_each_picture_is_in_its_place() -> None:
    sheet = pixels(compose([picture(RED), picture(GREEN), picture(BLUE), picture(WHITE)]))
    cell_centres = [(128, 128), (128 + 256 + GAP, 128), (128, 128 + 256 + GAP), (128 + 256 + GAP, 128 + 256 + GAP)]
    assert [sheet.getpixel(centre) for centre in cell_centres] == [RED, GREEN, BLUE, WHITE]
    assert sheet.getpixel((256 + GAP // 2, 10)) == BACKGROUND


def test_an_unfinished_picture_is_a_dark_tile_of_the_same_size() -> None:
    sheet = pixels(compose([None, picture(GREEN, (88, 48)), None]))
    assert sheet.size == (2 * 469 + GAP, 2 * 256 + GAP)
    background_pixel = sheet.getpixel((100, 100))
    assert isinstance(background_pixel, tuple)
    assert max(background_pixel) < 40
    assert sheet.getpixel((469 + GAP + 100, 100)) == GREEN
    assert pixels(compose([None] * 4, shape=(3, 2))).size == (2 * 384 + GAP, 2 * 256 + GAP)


def test_large_pictures_keep_their_size_up_to_the_largest_grid() -> None:
    assert pixels(compose([picture(size=(512, 512))] * 4)).size == (1024 + GAP, 1024 + GAP)
    assert max(pixels(compose([picture(size=(4096, 2048))] * 2)).size) <= 4096


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_format_is_read_and_written_with_the_same_bytes_twice(form: ImageFormat) -> None:
    grid = compose([picture(form=form), None], image_format=form)
    assert Image.open(io.BytesIO(grid)).format == form
    assert grid == compose([picture(form=form), None], image_format=form)


def test_transparent_pixels_get_the_colour_of_the_paper() -> None:
    assert decode_image(picture((255, 0, 0, 0))).getpixel((5, 5)) == BACKGROUND


@pytest.mark.parametrize("count", [0, 5])
def test_other_numbers_of_pictures_are_rejected(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        compose([None] * count)


def make_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be `width` × `height`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(4097, 4096), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage):
        decode_image(make_bomb(*size))


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(form: str) -> None:
    with pytest.raises(UnreadableImage, match="PNG, JPEG, WEBP"):
        compose([picture(form=form)])


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_damaged_bytes_are_read_or_refused(data: st.DataObject, form: str) -> None:
    content = bytearray(picture(form=form))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged_content = bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(UnreadableImage):
        assert decode_image(damaged_content).mode == "RGB"


def test_a_picture_is_compressed_to_fit_a_limit() -> None:
    full_grid = noise()
    assert shrink_to_fit(full_grid, len(full_grid)) == (full_grid, "PNG")
    result = shrink_to_fit(full_grid, len(full_grid) * 2 // 3)
    assert result is not None
    assert result[1] == "WEBP"
    assert len(result[0]) <= len(full_grid) * 2 // 3
    assert pixels(result[0]).size == (256, 256)
    assert shrink_to_fit(full_grid, 100) is None
