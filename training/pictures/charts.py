"""Generates charts: steps, lines, flat patches and plain shapes, with cleaner edges than any artwork.

They teach the super-resolver to keep flat areas flat and not to ring at edges. They are drawn four times as large and
averaged, so that an edge can lie anywhere in a pixel.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 4
CHART_KINDS = ("step", "step", "aligned", "aligned", "aligned", "lines", "shapes", "shapes", "flat")


def draw_chart(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw one chart, uint8 [side, side, 3]."""
    kind = str(rng.choice(CHART_KINDS))
    if kind == "aligned":
        return _draw_aligned_steps(rng, side)
    canvas = Image.new("RGB", (side * OVERSAMPLING, side * OVERSAMPLING), _random_colour(rng))
    draw = ImageDraw.Draw(canvas)
    if kind == "step":
        _draw_step(draw, rng, canvas.width)
    elif kind == "lines":
        _draw_lines(draw, rng, canvas.width)
    elif kind == "shapes":
        _draw_shapes(draw, rng, canvas.width)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def _random_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw any colour, or a grey: errors show most at a step between two greys."""
    red, green, blue = (int(part) for part in rng.integers(0, 256, 3))
    return (red, red, red) if rng.random() < 0.4 else (red, green, blue)


def _draw_aligned_steps(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw steps on pixel borders of the small picture: the edge is hard in both sizes."""
    small = np.empty((side // 4, side // 4, 3), np.uint8)
    small[:] = _random_colour(rng)
    small[:, int(rng.integers(4, side // 4 - 4)) :] = _random_colour(rng)
    if rng.random() < 0.3:
        small[int(rng.integers(4, side // 4 - 4)) :] = _random_colour(rng)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    return large.transpose(1, 0, 2).copy() if rng.random() < 0.5 else large


def _draw_step(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-np.sin(angle), np.cos(angle)])
    middle = rng.uniform(0.3, 0.7, 2) * side
    extent = 2 * side
    corners = (
        middle + along * extent,
        middle - along * extent,
        middle - along * extent + across * extent * 2,
        middle + along * extent + across * extent * 2,
    )
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=_random_colour(rng))


def _draw_lines(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for _ in range(int(rng.integers(3, 9))):
        x0, y0, x1, y1 = (float(coordinate) for coordinate in rng.uniform(0, side, 4))
        draw.line((x0, y0, x1, y1), fill=_random_colour(rng), width=int(rng.integers(2, 12)) * OVERSAMPLING)


def _draw_shapes(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for _ in range(int(rng.integers(2, 9))):
        x, y = (float(coordinate) for coordinate in rng.uniform(0, side, 2))
        half_width, half_height = (float(half_side) for half_side in rng.uniform(0.02, 0.3, 2) * side)
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        kind = rng.integers(4)
        if kind == 0:
            draw.ellipse(box, fill=_random_colour(rng))
        elif kind == 1:
            draw.ellipse(box, outline=_random_colour(rng), width=int(rng.integers(2, 10)) * OVERSAMPLING)
        elif kind == 2:
            draw.rounded_rectangle(box, float(rng.uniform(0, min(half_width, half_height))), fill=_random_colour(rng))
        else:
            points = [
                (x + float(dx) * half_width, y + float(dy) * half_height) for dx, dy in rng.uniform(-1, 1, (3, 2))
            ]
            draw.polygon(points, fill=_random_colour(rng))
