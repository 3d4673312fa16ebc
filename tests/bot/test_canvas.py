"""Canvases: where the picture is, what is around it, and that the mask is white exactly where it is not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bot.images import canvas
from bot.images.pixels import opened, saved

Pixels = np.ndarray[Any, Any]
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def picture(width: int = 64, height: int = 48) -> bytes:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return saved(Image.fromarray(np.dstack([x, y, x * 0 + 90]).astype(np.uint8)), "PNG")


def seen(png: bytes) -> Pixels:
    return np.asarray(opened(png), int)


def white(mask: bytes) -> Pixels:
    with Image.open(io.BytesIO(mask)) as grey:
        assert grey.mode == "L"
        found = np.asarray(grey)
    assert set(np.unique(found)) <= {0, 255}
    return found == 255


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_zoomed_out(factor: float) -> None:
    made, mask = canvas.zoomed_out(picture(), factor)
    shown, new = seen(made), white(mask)
    assert shown.shape == (48, 64, 3)
    width, height = round(64 / factor), round(48 / factor)
    left, top = (64 - width) // 2, (48 - height) // 2
    smaller = np.asarray(opened(picture()).resize((width, height), Image.Resampling.LANCZOS), int)
    assert (shown[top : top + height, left : left + width] == smaller).all()
    inner = np.zeros_like(new)
    inner[top + 1 : top + height - 1, left + 1 : left + width - 1] = True
    assert (new == ~inner).all(), "a seam of one pixel is drawn anew"
    assert np.abs(shown[height // 2 + top, left - 1] - shown[height // 2 + top, left]).max() < 30, (
        "goes on in its colours"
    )


@pytest.mark.parametrize(
    ("direction", "kept", "there"),
    [
        ("left", np.s_[:, :32], np.s_[:, 32:]),
        ("right", np.s_[:, 32:], np.s_[:, :32]),
        ("up", np.s_[:24], np.s_[24:]),
        ("down", np.s_[24:], np.s_[:24]),
    ],
)
def test_panned(direction: canvas.Direction, kept: Any, there: Any) -> None:
    made, mask = canvas.panned(picture(), direction)
    assert (seen(made)[there] == seen(picture())[kept]).all()
    new = white(mask)
    share = {"left": 32, "right": 32, "up": 24, "down": 24}[direction]
    assert new.sum() == (share + 1) * (48 if share == 32 else 64)
    assert not new[there][2:-2, 2:-2].any()
    made, mask = canvas.panned(picture(), direction, 0.25)
    assert white(mask).mean() == pytest.approx(0.25, abs=0.03)


@given(SIZES, st.sampled_from(sorted(canvas.TOWARDS)), st.floats(0.05, 0.95), st.floats(1.01, 4))
@settings(max_examples=60, deadline=None)
def test_canvas_and_mask_have_one_size(size: tuple[int, int], direction: Any, fraction: float, factor: float) -> None:
    whole = picture(*size)
    for made, mask in (canvas.zoomed_out(whole, factor), canvas.panned(whole, direction, fraction)):
        assert opened(made).size == opened(mask).size == size
    made, mask = canvas.squared(whole)
    assert opened(made).size == opened(mask).size == (max(size), max(size))
    assert canvas.squared(whole) == (made, mask), "the same bytes again"


def test_squared() -> None:
    made, mask = canvas.squared(picture())
    assert (seen(made)[8:56] == seen(picture())).all()
    assert white(mask)[:8].all()
    assert white(mask)[56:].all()
    assert not white(mask)[9:55].any()
    made, mask = canvas.squared(picture(40, 40))
    assert (seen(made) == seen(picture(40, 40))).all()
    assert not white(mask).any()


def test_what_is_no_zoom_and_no_pan() -> None:
    for factor in (0.0, 1.0, -2.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="does not zoom out"):
            canvas.zoomed_out(picture(), factor)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="is not between 0 and 1"):
            canvas.panned(picture(), "left", fraction)
