"""Draws the likeness of pictures to those with all evaluations against the number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.engine.users_plot import BACKGROUND_COLOUR, DARKROOM_COLOUR, GRID_COLOUR, write_text


def plot_curve(curve: Mapping[int, Sequence[float]], path: Path, caption: str) -> None:
    """Draw mean, and the lowest and highest tenth, against the evaluations as a PNG. Raises OSError."""
    width = 720
    height = 420
    left = 86
    bottom = 80
    image = Image.new("RGB", (width, height), BACKGROUND_COLOUR)
    draw = ImageDraw.Draw(image)
    counts = list(curve)
    low = 20.0
    high = 60.0

    def place(count: float, value: float) -> tuple[float, float]:
        x = left + (width - left - 30) * (np.log(count / counts[0]) / np.log(counts[-1] / counts[0]))
        return float(x), float(height - bottom - (height - bottom - 50) * (value - low) / (high - low))

    write_text(draw, (left, 10), "likeness to the picture with all evaluations, dB", size=18, anchor="la")
    for tick in range(int(low), int(high) + 1, 10):
        draw.line([place(counts[0], tick), place(counts[-1], tick)], fill=GRID_COLOUR)
        write_text(draw, (left - 10, place(counts[0], tick)[1]), str(tick), anchor="rm")
    for count, values in curve.items():
        tenth, nine_tenths = (min(high, max(low, float(np.percentile(values, q)))) for q in (10, 90))
        draw.line([place(count, tenth), place(count, nine_tenths)], fill=GRID_COLOUR, width=10)
        write_text(draw, (place(count, low)[0], height - bottom + 16), str(count))
    points = [place(count, fmean(values)) for count, values in curve.items()]
    draw.line(points, fill=DARKROOM_COLOUR, width=3)
    for x, y in points:
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=DARKROOM_COLOUR)
    write_text(
        draw, (width // 2, height - 44), "evaluations of 1000 steps of DDPM; the bars hold eight of ten pictures"
    )
    write_text(draw, (width // 2, height - 20), caption)
    image.quantize(64).save(path, optimize=True)
