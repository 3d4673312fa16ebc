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

from engine.training.evaluate.measures import overshoot

FINER = 4
LEVELS = ((64, 192), (96, 160), (112, 144))  # away from black and white, so that clipping does not hide overshoot
SIDE = 64

Enlarge = Callable[[Image.Image], Image.Image]


def charts(side: int = SIDE) -> Iterator[tuple[str, int, int, Image.Image]]:
    """Yield name, darker grey, lighter grey, and the chart: grey RGB, `side` px."""
    down, along = np.mgrid[: side * FINER, : side * FINER]
    middle = side // 2 * FINER
    places = {f"upright, {phase}/{FINER} px on": along >= middle + phase for phase in range(FINER)}
    places |= {f"lying, {phase}/{FINER} px on": down >= middle + phase for phase in range(FINER)}
    places |= {"slanting": along + down >= 2 * middle, "steep": 3 * along + down >= 4 * middle}
    places |= {"a line": (along // FINER == side // 2), "a slanting line": abs(along - down) < FINER // 2}
    for low, high in LEVELS:
        for name, light in places.items():
            large = np.where(light, high, low).astype(np.float64)
            small = large.reshape(side, FINER, side, FINER).mean(axis=(1, 3)).round().astype(np.uint8)
            yield f"{low} to {high}, {name}", low, high, Image.fromarray(small).convert("RGB")


def overshoots(enlarge: Enlarge, every: int = 1) -> dict[str, float]:
    """Return the overshoot by chart in steps of 255, for one chart in `every`."""
    some = islice(charts(), 0, None, every)
    return {name: overshoot(np.asarray(enlarge(chart)), low, high) for name, low, high, chart in some}
