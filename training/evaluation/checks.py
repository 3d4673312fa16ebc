"""All checks of the evaluation in order, with their rows. A check that cannot run fills its rows with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.report.figure_row import FigureRow
from engine.contract import JobRejected
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.goals import Goal
from training.evaluation.picture_quality import check_memorisation, check_realism, check_reconstruction, check_seeds
from training.evaluation.prompt_adherence import (
    check_backgrounds,
    check_guidance,
    check_held_out_lemmas,
    check_held_out_words,
    check_hues,
    check_labels,
)
from training.evaluation.speed import check_grids, check_sizes, check_upscaling


@dataclass(frozen=True)
class Check:
    """One check. `run` returns the rows of `goals`; its ValueError says in one sentence what is missing."""

    name: str
    goals: tuple[Goal, ...]
    run: Callable[[EvaluationContext], list[FigureRow]]


CHECKS = (
    Check("reconstruction", (goals.PSNR, goals.SSIM), check_reconstruction),
    Check("backgrounds", (goals.BACKGROUNDS,), check_backgrounds),
    Check("hues", (goals.HUES,), check_hues),
    Check("labels", goals.LABELS, check_labels),
    Check("words", (goals.WORDS, goals.WORDS_SHARE), check_held_out_words),
    Check("lemmas", (goals.LEMMAS,), check_held_out_lemmas),
    Check("realism", (goals.FRECHET, goals.GRADIENT_ENERGY), check_realism),
    Check("seeds", (goals.DIVERSITY, goals.SEEDS_ALIKE), check_seeds),
    Check("memories", (goals.MEMORISED,), check_memorisation),
    Check("guidance", goals.GUIDANCE_GOALS, check_guidance),
    Check("speed", (goals.GRID_1000_STEPS, goals.GRID_30_STEPS, goals.GRID_4_STEPS), check_grids),
    Check("enlarging", (goals.UPSCALE_TIME, goals.OVERSHOOT), check_upscaling),
    Check("sizes", (goals.TOTAL_WEIGHTS, goals.LARGEST_FILE), check_sizes),
)
CHECK_NAMES = tuple(check.name for check in CHECKS)


def run_checks(
    context: EvaluationContext, check_names: Sequence[str], report: Callable[[str], None]
) -> list[FigureRow]:
    """Run the named checks (none: all) and return their rows. Raises ValueError for an unknown name."""
    unknown_names = [name for name in check_names if name not in CHECK_NAMES]
    if unknown_names:
        raise ValueError(f"There is no check called {unknown_names[0][:40]!r}; there are {', '.join(CHECK_NAMES)}.")
    rows: list[FigureRow] = []
    for check in CHECKS:
        if not check_names or check.name in check_names:
            start_time = time.monotonic()
            rows += _run_check(check, context)
            report(f"{check.name}: {time.monotonic() - start_time:.0f} s")
    return rows


def _run_check(check: Check, context: EvaluationContext) -> list[FigureRow]:
    try:
        return check.run(context)
    except (ValueError, JobRejected) as error:
        return [goal.make_row(None, str(error)) for goal in check.goals]
