"""The name, goal and unit of every figure of the evaluation, so that a check that cannot run still has its rows."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bench.row import Row


@dataclass(frozen=True)
class Goal:
    """One figure's description. `goal` has `Row`'s format; None means that the figure has no goal."""

    name: str
    goal: str | None
    unit: str

    def row(self, figure: float | None, note: str = "") -> Row:
        return Row(self.name, None if figure is None else round(figure, 2), self.goal, self.unit, note)


PSNR = Goal("reconstruction: PSNR inside the subject, drawings held out", "≥ 24", "dB")
SSIM = Goal("reconstruction: SSIM, drawings held out", None, "")
BACKGROUNDS = Goal("backgrounds as named", "≥ 95", "%")
HUES = Goal("hues as named, on pairs that were held out", "≥ 75", "%")
OWN_AT_1 = Goal("the judge's own retrieval at 1, any rendering of real drawings", None, "%")
OWN_AT_5 = Goal("the judge's own retrieval at 5, any rendering of real drawings", None, "%")
POSED_AT_1 = Goal("the judge's own retrieval at 1, real drawings on white", None, "%")
POSED_AT_5 = Goal("the judge's own retrieval at 5, real drawings on white", None, "%")
AT_1 = Goal("label retrieval at 1", None, "%")
AT_5 = Goal("label retrieval at 5", None, "%")
AT_5_SHARE = Goal("label retrieval at 5, as a share of the judge's own on white", "≥ 80", "%")
LABELS = (OWN_AT_1, OWN_AT_5, POSED_AT_1, POSED_AT_5, AT_1, AT_5, AT_5_SHARE)
WORDS = Goal("held-out words among the first 5", None, "%")
WORDS_SHARE = Goal("held-out words among the first 5, as a share of the judge's own on white", "≥ 60", "%")
DIVERSITY = Goal("difference between seeds, against that between drawings", None, "")
SAME = Goal("prompts where two of four seeds give the same picture", None, "%")
MEMORISED = Goal("pictures that repeat a training drawing", None, "%")
GRID_1000 = Goal("a grid of four, 1000 steps", "≤ 60", "s")
GRID_30 = Goal("a grid of four, 30 steps", "≤ 4", "s")
ENLARGED = Goal("one picture, four times as wide and high", "≤ 1", "s")
OVERSHOOT = Goal("overshoot of the super-resolver beside an edge, the worst", "≤ 4", "of 255")
ALL_WEIGHTS = Goal("weights, together", "≤ 90", "MB")
LARGEST = Goal("weights, the largest file", "≤ 45", "MB")
SWEPT = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)


INTERVALS = ((0.0, 0.5), (0.0, 0.75), (0.1, 0.6), (0.2, 0.7), (0.3, 0.8), (0.5, 1.0))


def at_strength(guidance: float) -> tuple[Goal, Goal]:
    """Return the goals of retrieval at 5 and backgrounds at this guidance."""
    return (
        Goal(f"guidance {guidance:g}: label retrieval at 5", None, "%"),
        Goal(f"guidance {guidance:g}: backgrounds as named", None, "%"),
    )


def during(interval: tuple[float, float]) -> tuple[Goal, Goal]:
    """Return the same for guidance within this interval of the steps."""
    told = f"guidance from {interval[0]:g} to {interval[1]:g} of the steps"
    return Goal(f"{told}: label retrieval at 5", None, "%"), Goal(f"{told}: backgrounds as named", None, "%")


GUIDED = tuple(goal for pair in [*map(at_strength, SWEPT), *map(during, INTERVALS)] for goal in pair)
