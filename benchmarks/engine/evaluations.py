"""`darkroom bench evaluations`: pictures with few evaluations of the network, beside those with an evaluation a step.

Both are drawn in one run, with the same noise, by the engine and the embedded model. Their likeness is the PSNR of the
finished pictures in dB.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import msgspec
import torch
from PIL import Image

from benchmarks.engine.resumption import is_resumed_equal
from benchmarks.engine.users_plot import plot_curve
from benchmarks.engine.workload import run_jobs
from benchmarks.fixtures.jobs import make_job, make_recipe
from benchmarks.report.figure_row import FigureRow, make_parser, print_progress, print_rows
from benchmarks.report.measures import psnr
from engine.batching.engine import LatentsDone
from engine.calibration.calibration import calibrate
from engine.contract import (
    DRAFT_EVALUATIONS,
    Dtype,
    Recipe,
    Sampler,
    count_row_steps,
    count_usual_evaluations,
    list_evaluated_steps,
)
from engine.models.families.embedded import load_embedded
from engine.models.family import Family
from engine.models.judge import PromptJudge
from engine.sampling import COLUMNS, Plan, compose

# None of them chose where the evaluations lie.
PROMPT_TEXT = (
    "terrier, looking up, cute, white background; octopus, white background; sunflower; fox, white background; "
    "strawberry, black background; guitar; owl; mushroom, white background; blue bicycle; green teapot; "
    "yellow submarine, white background; red umbrella; purple butterfly; pink pig; penguin, blue background; snowman; "
    "cactus, white background; lemon; rabbit, cute; turtle; hamburger; lighthouse; hot air balloon; "
    "airplane, white background; sailboat; tractor; violin; trophy; light bulb; alarm clock, white background; candle; "
    "key; mermaid; robot, black background; unicorn; dragon; crown, white background; anchor; kangaroo; "
    "whale, black background"
)
PROMPTS = tuple(PROMPT_TEXT.split("; "))
QUICK_PROMPTS = PROMPTS[::10]
STEPS = 1000
COUNT = 4
JOBS_AT_ONCE = 8
# dB; per cent of the pictures
LEAST_PSNR = 34.0
LEAST_SHARE = 95
# Sampler, steps, evaluations, and how many dB more likeness they give than as many steps of the same sampler.
OTHER_SAMPLERS: tuple[tuple[Sampler, int, int], ...] = (("ddim", 200, 40), ("euler", 50, 25), ("dpmpp_2m", 25, 13))
CURVE_EVALUATIONS = (15, 25, 40, 60, 80, 100, 150, 250)
KILLS = 12


@dataclass(frozen=True)
class Drawing:
    """What the rows have in common: the model, the number format, and the most rows of a forward."""

    family: Family
    dtype: Dtype
    batch_limit: int

    def make_recipe(self, prompt: str, sampler: Sampler, steps: int, evaluations: int, seed: int) -> Recipe:
        start, stop = self.family.interval
        options = {"guidance_start": start, "guidance_stop": stop, "count": COUNT, "dtype": self.dtype, "seed": seed}
        return make_recipe(self.family, prompt, sampler=sampler, steps=steps, evaluations=evaluations, **options)

    def draw(self, prompts: Sequence[str], sampler: Sampler, steps: int, evaluations: int) -> list[Image.Image]:
        """Return the finished pictures, four of each prompt in turn; prompt `i` has the seeds from 100·i on."""
        recipes = [self.make_recipe(prompt, sampler, steps, evaluations, 100 * i) for i, prompt in enumerate(prompts)]
        pictures = list[Image.Image]()
        for start in range(0, len(recipes), JOBS_AT_ONCE):
            pictures += self._run(recipes[start : start + JOBS_AT_ONCE])
        return pictures

    def time_grid(self, evaluations: int) -> float:
        """Return the seconds from a recipe to four finished pictures of DDPM."""
        started_at = time.perf_counter()
        self.draw(PROMPTS[:1], "ddpm", STEPS, evaluations)
        return time.perf_counter() - started_at

    def _run(self, recipes: Sequence[Recipe]) -> list[Image.Image]:
        jobs = [make_job(recipe, number) for number, recipe in enumerate(recipes)]
        pictures = {
            (event.job, event.image): self.family.finish(event.latents).convert("RGB")
            for event in run_jobs(self.family, jobs, self.batch_limit)
            if isinstance(event, LatentsDone)
        }
        return [pictures[key] for key in sorted(pictures)]


def measure_time(drawing: Drawing) -> FigureRow:
    """Divide the time of a grid of four by that with all evaluations: the median of three by one, in one run."""
    usual = count_usual_evaluations("ddpm", STEPS)
    drawing.time_grid(DRAFT_EVALUATIONS)  # warm
    first, all_seconds, *others = (drawing.time_grid(count) for count in (usual, 0, usual, usual))
    seconds = median((first, *others))
    recipes = [drawing.make_recipe(PROMPTS[0], "ddpm", STEPS, count, 0) for count in (usual, 0)]
    rows = [count_row_steps(recipe) for recipe in recipes]
    note = f"{seconds:.1f} s instead of {all_seconds:.1f}; {rows[0]} row-steps instead of {rows[1]}"
    name = f"grid of four, {STEPS} steps of DDPM: time with {usual} evaluations ÷ with all"
    return FigureRow(name, seconds / all_seconds, "≤ 0.13", "", note)


@dataclass(frozen=True)
class Comparison:
    """The same pictures with few evaluations and with all, by prompt and image."""

    few: Sequence[Image.Image]
    all: Sequence[Image.Image]
    prompts: Sequence[str]

    @property
    def likeness(self) -> list[float]:
        """The PSNR of each picture in dB."""
        return [psnr(few, full) for few, full in zip(self.few, self.all, strict=True)]

    def score(self, judge: PromptJudge) -> tuple[float, float]:
        """Return the judge's mean scores: of the pictures with few evaluations, and with all."""
        few, full = (fmean(self._score_all(judge, pictures)) for pictures in (self.few, self.all))
        return few, full

    def _score_all(self, judge: PromptJudge, pictures: Sequence[Image.Image]) -> Iterable[float]:
        for number, prompt in enumerate(self.prompts):
            yield from judge.score_pictures(pictures[number * COUNT : (number + 1) * COUNT], prompt)


def measure_likeness(drawing: Drawing, prompts: Sequence[str], out: Path | None) -> list[FigureRow]:
    """Compare pictures of 1000 steps with the usual evaluations, and drafts, with all evaluations."""
    usual = count_usual_evaluations("ddpm", STEPS)
    counts = (usual, DRAFT_EVALUATIONS, 0)
    few, draft, full = (drawing.draw(prompts, "ddpm", STEPS, count) for count in counts)
    comparison = Comparison(few, full, prompts)
    likeness = comparison.likeness
    alike = 100 * fmean(value >= LEAST_PSNR for value in likeness)
    others = [n for n, value in enumerate(likeness) if value < LEAST_PSNR]
    names = ", ".join(f"{prompts[n // COUNT]} ({n % COUNT + 1})" for n in others)
    if out is not None:
        save_pictures(out, {"few": few, "draft": draft, "all": full})
    what = f"{STEPS} steps of DDPM with {usual} evaluations against all, {len(full)} pictures"
    mean_name, alike_name = f"{what}: mean", f"{what}: at least {LEAST_PSNR:.0f} dB"
    size = len(full)
    rows = [
        FigureRow(mean_name, fmean(likeness), "≥ 40", "dB", f"median {median(likeness):.1f}", size, size),
        FigureRow(alike_name, alike, f"≥ {LEAST_SHARE}", "%", names, size, size),
    ]
    judge = getattr(drawing.family, "judge", None)
    if isinstance(judge, PromptJudge):
        scores = comparison.score(judge)
        note = f"cosine with the prompt: {scores[0]:.4f} and {scores[1]:.4f}"
        rows.append(FigureRow("the judge's score of these ÷ of those", scores[0] / scores[1], "≥ 0.99", "", note))
    drafts = fmean(Comparison(draft, full, prompts).likeness)
    draft_name = f"drafts ({DRAFT_EVALUATIONS} evaluations) against all: mean"
    return [*rows, FigureRow(draft_name, drafts, "≥ 32", "dB", "", size, size)]


def save_pictures(folder: Path, pictures: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write the pictures as `few-000.png`, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in pictures.items():
        for number, picture in enumerate(each):
            picture.save(folder / f"{name}-{number:03}.png")


def measure_other_samplers(drawing: Drawing, prompts: Sequence[str]) -> Iterable[FigureRow]:
    """Compare few evaluations of many steps with as many steps: which are nearer to all evaluations of all steps."""
    for sampler, steps, evaluations in OTHER_SAMPLERS:
        few, fewer_steps, full = (
            drawing.draw(prompts, sampler, each_steps, count)
            for each_steps, count in ((steps, evaluations), (evaluations, 0), (steps, 0))
        )
        ours, theirs = (fmean(Comparison(each, full, prompts).likeness) for each in (few, fewer_steps))
        name = f"{sampler}: {evaluations} evaluations of {steps} steps, against {evaluations} steps"
        note = f"{ours:.1f} dB and {theirs:.1f} dB"
        yield FigureRow(name, ours - theirs, "≥ 5", "dB more", note, samples=len(full), planned=len(full))


def measure_composition(family: Family) -> FigureRow:
    """Compare a composed plan's rows with its steps one after another, for every sampler, in double precision."""
    worst = 0.0
    for sampler in family.samplers:
        recipe = make_recipe(family, "", sampler=sampler, steps=50, evaluations=20, guidance=1.0)
        try:
            full = family.plan(sampler, recipe.steps, 0.0, family.size, family.size)
        except ValueError:  # it has no table
            continue
        composed = compose(full, tuple(list_evaluated_steps(recipe)))
        worst = max(worst, _compare_rows(full, composed))
    return FigureRow("composed rows against single steps, every sampler", worst, "≤ 1e-6", "relative")


def _compare_rows(full: Plan, composed: Plan) -> float:
    """Return the largest relative difference after a row whose x0 is held, from random latents, x0 and noise."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for row, first in enumerate(composed.row_steps[:-1]):
        x, x0 = torch.randn(2, 64, generator=generator, dtype=torch.float64)
        coefficients = dict(zip(COLUMNS, composed.table[row].tolist(), strict=True))
        positions, weights = composed.draws_at(first)
        noises = torch.randn(len(positions), 64, generator=generator, dtype=torch.float64)
        out = (x0 - coefficients["P"] * x) / coefficients["Q"]
        noise = torch.tensor(weights).double() @ noises
        actual = coefficients["A"] * x + coefficients["B"] * out + coefficients["M"] * x0 + coefficients["N"] * noise
        expected = x
        draws = iter(noises)
        for step in range(first, composed.row_steps[row + 1]):
            single = dict(zip(COLUMNS, full.table[step].tolist(), strict=True))
            out = (x0 - single["P"] * expected) / single["Q"]
            expected = single["A"] * expected + single["B"] * out + single["M"] * x0
            if full.has_noise_draw(step):
                expected = expected + single["N"] * next(draws)
        worst = max(worst, float((actual - expected).abs().max() / expected.abs().max()))
    return worst


def measure_resumption(drawing: Drawing) -> FigureRow:
    """Kill pictures with few evaluations, resume them from their snapshots, and count those that are equal."""
    recipe = drawing.make_recipe(PROMPTS[0], "ddpm", 200, 40, 7)
    recipe = msgspec.structs.replace(recipe, count=1, bucket=2)  # a pinned batch shape
    jobs = [make_job(msgspec.structs.replace(recipe, seed=number), number) for number in range(KILLS)]
    equal = sum(is_resumed_equal(drawing.family, job, 1 + 3 * number) for number, job in enumerate(jobs))
    name = f"few evaluations, killed and resumed {KILLS} times, exact: equal to the bit"
    return FigureRow(name, equal, f"= {KILLS}", "pictures", samples=KILLS, planned=KILLS)


def measure_curve(drawing: Drawing, prompts: Sequence[str]) -> dict[int, list[float]]:
    """Return the likeness of each picture of 1000 steps to that with all evaluations, by their number."""
    full = drawing.draw(prompts, "ddpm", STEPS, 0)
    curve = dict[int, list[float]]()
    for count in CURVE_EVALUATIONS:
        curve[count] = Comparison(drawing.draw(prompts, "ddpm", STEPS, count), full, prompts).likeness
        print_progress(f"{count} evaluations: mean {fmean(curve[count]):.1f} dB, least {min(curve[count]):.1f}")
    return curve


def open_drawing() -> Drawing:
    """Load the embedded model with the number format and batch limit that a worker would use here."""
    family = load_embedded()
    with tempfile.TemporaryDirectory() as folder:
        calibration = calibrate(family, Path(folder) / "calibration.json")
    return Drawing(family, calibration.dtype, calibration.rows)


def measure_brief_rows(family: Family, dtype: Dtype, batch_limit: int) -> list[FigureRow]:
    """Return the rows that `darkroom bench` takes: time, likeness of four pictures, and the arithmetic."""
    drawing = Drawing(family, dtype, batch_limit)
    likeness = measure_likeness(drawing, PROMPTS[:1], None)
    return [measure_time(drawing), likeness[0], measure_composition(family), measure_resumption(drawing)]


def run(args: Sequence[str]) -> int:
    """Measure and print; return 0, even if goals are missed."""
    parser = make_parser("evaluations", __doc__, "16 pictures in place of 160, and of other samplers 8")
    parser.add_argument("--out", type=Path, help="a folder for the compared pictures")
    parser.add_argument("--curve", type=Path, metavar="FILE", help="only plot likeness against evaluations as a PNG")
    arguments = parser.parse_args(args)
    drawing = open_drawing()
    prompts = QUICK_PROMPTS if arguments.quick else PROMPTS
    if arguments.curve:
        curve = measure_curve(drawing, QUICK_PROMPTS)
        plot_curve(curve, arguments.curve, f"embedded model, {drawing.dtype}, {COUNT * len(QUICK_PROMPTS)} pictures")
        return 0
    rows = [measure_composition(drawing.family), measure_resumption(drawing), measure_time(drawing)]
    print_progress("other samplers")
    rows += measure_other_samplers(drawing, prompts[:: 2 if arguments.quick else 4])
    print_progress(f"{COUNT * len(prompts)} pictures with all evaluations: this takes a while")
    rows += measure_likeness(drawing, prompts, arguments.out)
    print_rows(rows, as_json=arguments.json)
    return 0
