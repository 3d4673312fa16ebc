"""Canvases: the position of the picture, its surroundings, and a mask that is white exactly outside it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bot.pictures import outpaint_canvas
from bot.pictures.image_codec import decode_image, encode_image

Pixels = np.ndarray[Any, Any]
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def picture(width: int = 64, height: int = 48) -> bytes:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return encode_image(Image.fromarray(np.dstack([x, y, x * 0 + 90]).astype(np.uint8)), "PNG")


def pixels_of(content: bytes) -> Pixels:
    return np.asarray(decode_image(content), int)


def is_white(mask: bytes) -> Pixels:
    with Image.open(io.BytesIO(mask)) as grey:
        assert grey.mode == "L"
        values = np.asarray(grey)
    assert set(np.unique(values)) <= {0, 255}
    return values == 255


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_zoom_out_centres_the_picture_and_masks_the_rest(factor: float) -> None:
    result, mask = outpaint_canvas.zoom_out(picture(), factor)
    pixels = pixels_of(result)
    new = is_white(mask)
    assert pixels.shape == (48, 64, 3)
    width = round(64 / factor)
    height = round(48 / factor)
    left = (64 - width) // 2
    top = (48 - height) // 2
    smaller_picture = np.asarray(decode_image(picture()).resize((width, height), Image.Resampling.LANCZOS), int)
    assert (pixels[top : top + height, left : left + width] == smaller_picture).all()
    inner = np.zeros_like(new)
    inner[top + 1 : top + height - 1, left + 1 : left + width - 1] = True
    assert (new == ~inner).all(), "the model repaints a seam of one pixel"
    assert np.abs(pixels[height // 2 + top, left - 1] - pixels[height // 2 + top, left]).max() < 30, (
        "the surroundings continue its colours"
    )


@pytest.mark.parametrize(
    ("direction", "kept_region", "new_region"),
    [
        ("left", np.s_[:, :32], np.s_[:, 32:]),
        ("right", np.s_[:, 32:], np.s_[:, :32]),
        ("up", np.s_[:24], np.s_[24:]),
        ("down", np.s_[24:], np.s_[:24]),
    ],
)
def test_pan_shifts_the_picture_and_masks_the_new_part(
    direction: outpaint_canvas.Direction, kept_region: Any, new_region: Any
) -> None:
    result, mask = outpaint_canvas.pan(picture(), direction)
    assert (pixels_of(result)[new_region] == pixels_of(picture())[kept_region]).all()
    new = is_white(mask)
    shift = {"left": 32, "right": 32, "up": 24, "down": 24}[direction]
    assert new.sum() == (shift + 1) * (48 if shift == 32 else 64)
    assert not new[new_region][2:-2, 2:-2].any()
    result, mask = outpaint_canvas.pan(picture(), direction, 0.25)
    assert is_white(mask).mean() == pytest.approx(0.25, abs=0.03)


@given(SIZES, st.sampled_from(sorted(outpaint_canvas.PAN_VECTORS)), st.floats(0.05, 0.95), st.floats(1.01, 4))
@settings(max_examples=60, deadline=None)
def test_canvas_and_mask_have_one_size(size: tuple[int, int], direction: Any, fraction: float, factor: float) -> None:
    full_picture = picture(*size)
    for result, mask in (
        outpaint_canvas.zoom_out(full_picture, factor),
        outpaint_canvas.pan(full_picture, direction, fraction),
    ):
        assert decode_image(result).size == decode_image(mask).size == size
    result, mask = outpaint_canvas.extend_to_square(full_picture)
    assert decode_image(result).size == decode_image(mask).size == (max(size), max(size))
    assert outpaint_canvas.extend_to_square(full_picture) == (result, mask), "a second call gives the same bytes"


def test_a_square_canvas_centres_the_picture_and_masks_the_rest() -> None:
    result, mask = outpaint_canvas.extend_to_square(picture())
    assert (pixels_of(result)[8:56] == pixels_of(picture())).all()
    assert is_white(mask)[:8].all()
    assert is_white(mask)[56:].all()
    assert not is_white(mask)[9:55].any()
    result, mask = outpaint_canvas.extend_to_square(picture(40, 40))
    assert (pixels_of(result) == pixels_of(picture(40, 40))).all()
    assert not is_white(mask).any()


def test_factors_and_fractions_out_of_range_are_refused() -> None:
    for factor in (0.0, 1.0, -2.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="does not zoom out"):
            outpaint_canvas.zoom_out(picture(), factor)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="is not between 0 and 1"):
            outpaint_canvas.pan(picture(), "left", fraction)
