"""The name, goal and unit of every figure of the evaluation, so that a check that cannot run still has its rows."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report.figure_row import FigureRow


@dataclass(frozen=True)
class Goal:
    """One figure's description. `goal` has the format of `FigureRow`; None means that the figure has no goal."""

    name: str
    goal: str | None
    unit: str

    def make_row(self, value: float | None, note: str = "") -> FigureRow:
        """Return the row; four decimals, so that 0.957 does not pass as 0.96."""
        return FigureRow(self.name, None if value is None else round(value, 4), self.goal, self.unit, note)


PSNR = Goal("reconstruction: PSNR inside the subject, drawings held out", "≥ 32", "dB")
SSIM = Goal("reconstruction: SSIM, drawings held out", "≥ 0.96", "")
BACKGROUNDS = Goal("backgrounds as named", "≥ 99", "%")
HUES = Goal("hues as named, on pairs that were held out", "≥ 92", "%")
JUDGE_AT_1 = Goal("the judge's own retrieval at 1, any rendering of real drawings", None, "%")
JUDGE_AT_5 = Goal("the judge's own retrieval at 5, any rendering of real drawings", None, "%")
JUDGE_ON_WHITE_AT_1 = Goal("the judge's own retrieval at 1, real drawings on white", None, "%")
JUDGE_ON_WHITE_AT_5 = Goal("the judge's own retrieval at 5, real drawings on white", None, "%")
LABEL_AT_1 = Goal("label retrieval at 1", None, "%")
LABEL_AT_5 = Goal("label retrieval at 5", None, "%")
LABEL_AT_1_SHARE = Goal("label retrieval at 1, as a share of the judge's own on white", "≥ 92", "%")
LABEL_AT_5_SHARE = Goal("label retrieval at 5, as a share of the judge's own on white", "≥ 98", "%")
LABELS = (
    JUDGE_AT_1,
    JUDGE_AT_5,
    JUDGE_ON_WHITE_AT_1,
    JUDGE_ON_WHITE_AT_5,
    LABEL_AT_1,
    LABEL_AT_5,
    LABEL_AT_1_SHARE,
    LABEL_AT_5_SHARE,
)
WORDS = Goal("held-out words among the first 5", None, "%")
WORDS_SHARE = Goal("held-out words among the first 5, as a share of the judge's own on white", "≥ 60", "%")
LEMMAS = Goal("held-out lemmas among the first 5", "≥ 75", "%")
FRECHET = Goal("Fréchet distance in the judge's features, against real drawings", None, "")
GRADIENT_ENERGY = Goal("gradient energy, drawn ÷ real", "≥ 0.85", "")
DIVERSITY = Goal("difference between seeds, against that between drawings", "≥ 0.25", "")
SEEDS_ALIKE = Goal("prompts where two of four seeds give the same picture", None, "%")
MEMORISED = Goal("pictures that repeat a training drawing", None, "%")
GRID_1000_STEPS = Goal("a grid of four, 1000 steps", "≤ 60", "s")
GRID_30_STEPS = Goal("a grid of four, 30 steps", "≤ 4", "s")
GRID_4_STEPS = Goal("a grid of four, 4 steps", "≤ 1", "s")
UPSCALE_TIME = Goal("one picture, four times as wide and high", "≤ 1", "s")
OVERSHOOT = Goal("overshoot of the super-resolver beside an edge, the worst", "≤ 4", "of 255")
TOTAL_WEIGHTS = Goal("weights, together", "≤ 90", "MB")
LARGEST_FILE = Goal("weights, the largest file", "≤ 45", "MB")
GUIDANCE_SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)


GUIDANCE_INTERVALS = ((0.0, 0.5), (0.0, 0.75), (0.1, 0.6), (0.2, 0.7), (0.3, 0.8), (0.5, 1.0))


def goals_at_scale(guidance: float) -> tuple[Goal, Goal]:
    """Return the goals of retrieval at 5 and backgrounds at this guidance."""
    return (
        Goal(f"guidance {guidance:g}: label retrieval at 5", None, "%"),
        Goal(f"guidance {guidance:g}: backgrounds as named", None, "%"),
    )


def goals_in_interval(interval: tuple[float, float]) -> tuple[Goal, Goal]:
    """Return the same for guidance within this interval of the steps."""
    prefix = f"guidance from {interval[0]:g} to {interval[1]:g} of the steps"
    return Goal(f"{prefix}: label retrieval at 5", None, "%"), Goal(f"{prefix}: backgrounds as named", None, "%")


GUIDANCE_GOALS = tuple(
    goal
    for pair in [*map(goals_at_scale, GUIDANCE_SCALES), *map(goals_in_interval, GUIDANCE_INTERVALS)]
    for goal in pair
)
