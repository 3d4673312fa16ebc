"""All checks of the evaluation in order, with their rows. A check that cannot run fills its rows with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.bench.row import Row
from engine.training.evaluate import goals, guidance, prompted, reconstruction, speed, variety
from engine.training.evaluate.goals import Goal
from engine.training.evaluate.scene import Scene
from engine.unfit import Unfit


@dataclass(frozen=True)
class Check:
    """One check. `run` returns the rows of `goals`; its ValueError says in one sentence what is missing."""

    name: str
    goals: tuple[Goal, ...]
    run: Callable[[Scene], list[Row]]


CHECKS = (
    Check("reconstruction", (goals.PSNR, goals.SSIM), reconstruction.rows),
    Check("backgrounds", (goals.BACKGROUNDS,), prompted.backgrounds),
    Check("hues", (goals.HUES,), prompted.hues),
    Check("labels", goals.LABELS, prompted.labels),
    Check("words", (goals.WORDS, goals.WORDS_SHARE), prompted.held_out_words),
    Check("seeds", (goals.DIVERSITY, goals.SAME), variety.seeds),
    Check("memories", (goals.MEMORISED,), variety.memories),
    Check("guidance", goals.GUIDED, guidance.rows),
    Check("speed", (goals.GRID_1000, goals.GRID_30), speed.grids),
    Check("enlarging", (goals.ENLARGED, goals.OVERSHOOT), speed.enlarging),
    Check("sizes", (goals.ALL_WEIGHTS, goals.LARGEST), speed.sizes),
)
NAMES = tuple(check.name for check in CHECKS)


def evaluate(scene: Scene, only: Sequence[str], say: Callable[[str], None]) -> list[Row]:
    """Run the named checks (none: all) and return their rows. Raises ValueError for an unknown name."""
    unknown = [name for name in only if name not in NAMES]
    if unknown:
        raise ValueError(f"There is no check called {unknown[0][:40]!r}; there are {', '.join(NAMES)}.")
    found: list[Row] = []
    for check in CHECKS:
        if not only or check.name in only:
            began = time.monotonic()
            found += _rows(check, scene)
            say(f"{check.name}: {time.monotonic() - began:.0f} s")
    return found


def _rows(check: Check, scene: Scene) -> list[Row]:
    try:
        return check.run(scene)
    except (ValueError, Unfit) as error:
        return [goal.row(None, str(error)) for goal in check.goals]
