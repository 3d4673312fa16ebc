"""Charts with hard edges between two greys, and the overshoot of a super-resolver on them.

The charts vary in contrast and direction (vertical, horizontal, slanting) and in the edge's place: on a pixel border
and a quarter, a half and three quarters past it. Some have lines as thin as one pixel. A network that was trained on
one chart does not know the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from PIL import Image

from training.evaluation.measures import overshoot

OVERSAMPLING = 4
GREY_LEVELS = ((64, 192), (96, 160), (112, 144))  # away from black and white, so that clipping does not hide overshoot
SIDE = 64

Upscale = Callable[[Image.Image], Image.Image]


def edge_charts(side: int = SIDE) -> Iterator[tuple[str, int, int, Image.Image]]:
    """Yield name, darker grey, lighter grey, and the chart: grey RGB, `side` px."""
    row_grid, column_grid = np.mgrid[: side * OVERSAMPLING, : side * OVERSAMPLING]
    middle = side // 2 * OVERSAMPLING
    patterns = {
        f"upright, {phase}/{OVERSAMPLING} px on": column_grid >= middle + phase for phase in range(OVERSAMPLING)
    }
    patterns |= {f"lying, {phase}/{OVERSAMPLING} px on": row_grid >= middle + phase for phase in range(OVERSAMPLING)}
    patterns |= {"slanting": column_grid + row_grid >= 2 * middle, "steep": 3 * column_grid + row_grid >= 4 * middle}
    patterns |= {
        "a line": (column_grid // OVERSAMPLING == side // 2),
        "a slanting line": abs(column_grid - row_grid) < OVERSAMPLING // 2,
    }
    for low, high in GREY_LEVELS:
        for name, light_mask in patterns.items():
            large = np.where(light_mask, high, low).astype(np.float64)
            small = large.reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean(axis=(1, 3)).round().astype(np.uint8)
            yield f"{low} to {high}, {name}", low, high, Image.fromarray(small).convert("RGB")


def measure_overshoots(upscale: Upscale, stride: int = 1) -> dict[str, float]:
    """Return the overshoot by chart in steps of 255, for one chart in `stride`."""
    selected_charts = islice(edge_charts(), 0, None, stride)
    return {name: overshoot(np.asarray(upscale(chart)), low, high) for name, low, high, chart in selected_charts}
