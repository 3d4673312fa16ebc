"""Generates charts: steps, lines, flat patches and plain shapes, with cleaner edges than any artwork.

Knows shapes and randomness only. They teach the super-resolver to keep flat areas flat and not to ring at edges. They
are drawn four times as large and averaged, so that an edge can lie anywhere in a pixel.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

FINER = 4
KINDS = ("step", "step", "aligned", "aligned", "aligned", "lines", "shapes", "shapes", "flat")


def chart(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw one chart, uint8 [side, side, 3]."""
    kind = str(rng.choice(KINDS))
    if kind == "aligned":
        return _aligned(rng, side)
    canvas = Image.new("RGB", (side * FINER, side * FINER), _colour(rng))
    draw = ImageDraw.Draw(canvas)
    if kind == "step":
        _step(draw, rng, canvas.width)
    elif kind == "lines":
        _lines(draw, rng, canvas.width)
    elif kind == "shapes":
        _shapes(draw, rng, canvas.width)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw any colour, or a grey: errors show most at a step between two greys."""
    red, green, blue = (int(part) for part in rng.integers(0, 256, 3))
    return (red, red, red) if rng.random() < 0.4 else (red, green, blue)


def _aligned(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw steps on pixel borders of the small picture: the edge is hard in both sizes."""
    small = np.empty((side // 4, side // 4, 3), np.uint8)
    small[:] = _colour(rng)
    small[:, int(rng.integers(4, side // 4 - 4)) :] = _colour(rng)
    if rng.random() < 0.3:
        small[int(rng.integers(4, side // 4 - 4)) :] = _colour(rng)
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    return large.transpose(1, 0, 2).copy() if rng.random() < 0.5 else large


def _step(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    middle = rng.uniform(0.3, 0.7, 2) * side
    far = 2 * side
    corners = (middle + along * far, middle - along * far, middle - along * far + across * far * 2,
               middle + along * far + across * far * 2)  # fmt: skip
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=_colour(rng))


def _lines(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for _ in range(int(rng.integers(3, 9))):
        x0, y0, x1, y1 = (float(place) for place in rng.uniform(0, side, 4))
        draw.line((x0, y0, x1, y1), fill=_colour(rng), width=int(rng.integers(2, 12)) * FINER)


def _shapes(draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int) -> None:
    for _ in range(int(rng.integers(2, 9))):
        x, y = (float(place) for place in rng.uniform(0, side, 2))
        wide, high = (float(half) for half in rng.uniform(0.02, 0.3, 2) * side)
        box, kind = (x - wide, y - high, x + wide, y + high), rng.integers(4)
        if kind == 0:
            draw.ellipse(box, fill=_colour(rng))
        elif kind == 1:
            draw.ellipse(box, outline=_colour(rng), width=int(rng.integers(2, 10)) * FINER)
        elif kind == 2:
            draw.rounded_rectangle(box, float(rng.uniform(0, min(wide, high))), fill=_colour(rng))
        else:
            points = [(x + float(dx) * wide, y + float(dy) * high) for dx, dy in rng.uniform(-1, 1, (3, 2))]
            draw.polygon(points, fill=_colour(rng))
