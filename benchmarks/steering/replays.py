"""Steers random jobs, draws each amended recipe anew, and compares the latents to the bit.

The steered job shares its batches with a neighbour, and its worker is lost now and then: another engine goes on from
its snapshots. The recipe is drawn anew alone, from the start. Both have the pinned batch shape of `exact` mode. Most
scripts run on small networks with random weights, one for each kind of schedule, and some on the embedded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
import torch

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from benchmarks.report.figure_row import FigureRow
from bot.domain.errors import UserError
from engine.batching.engine import Engine, JobFailure, LatentsDone
from engine.contract import (
    MAX_COUNT,
    AmendmentRequest,
    BillingKey,
    Change,
    Concept,
    DropImages,
    Job,
    JobRejected,
    Recipe,
    Sampler,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    list_final_images,
)
from engine.models import load_model
from engine.models.family import Family
from engine.models.library_logging import silence_libraries

REPLAY_NAME = "a steered run against its recipe drawn anew, exact: equal to the bit"


@dataclass(frozen=True)
class ScriptedModel:
    """The model of a script: its name, a small side of its pictures in pixels, and samplers that it takes."""

    name: str
    side: int
    samplers: tuple[Sampler, ...]


# Each model with its scripts, and with those of a quick run.
MODELS: tuple[tuple[ScriptedModel, int, int], ...] = (
    (ScriptedModel("sd", 32, ("ddpm", "ddim", "dpmpp_2m", "euler", "euler_ancestral")), 47, 4),
    (ScriptedModel("sd3", 64, ("euler", "dpmpp_2m")), 47, 4),
    (ScriptedModel("embedded", 32, ("ddpm", "ddim", "dpmpp_2m")), 6, 2),
)
SEED = 22
JOB = 1
NEIGHBOUR = 2


@dataclass
class SteeredRun:
    """A job that is steered in an engine. `recipe`: with its amendments so far; `latents`: by image."""

    family: Family
    recipe: Recipe
    neighbour: Recipe | None = None
    latents: dict[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])
    loss_count: int = 0

    def __post_init__(self) -> None:
        self._engine = self._open_engine()

    def _open_engine(self) -> Engine:
        engine = Engine({self.family.name: self.family})
        if self.neighbour is not None:
            engine.add(make_job(NEIGHBOUR, self.neighbour))
        return engine

    def begin(self) -> None:
        self._engine.add(make_job(JOB, self.recipe))

    def step(self) -> None:
        """Run one step. Raises RuntimeError if a job fails."""
        for event in self._engine.step():
            if isinstance(event, JobFailure):
                raise RuntimeError(event.reason)
            if isinstance(event, LatentsDone) and event.job == make_job(JOB, self.recipe).id:
                self.latents[event.image] = event.latents

    def finish(self) -> None:
        """Run all steps that are left."""
        while not self._engine.is_idle:
            self.step()

    def lose_worker(self) -> None:
        """Go on in another engine, from snapshots."""
        job = make_job(JOB, self.recipe)
        snapshots = self._engine.take_snapshots(job.id, epoch=1)
        self._engine.close()
        self._engine = self._open_engine()
        self._engine.add(job, snapshots)
        self.loss_count += 1

    def make(self, move: Move, number: int) -> None:
        """Run a move of a script. A change that cannot be is refused, and a job that is over hears nothing."""
        for _ in range(move.steps):
            self.step()
        if move.is_worker_lost and not self.latents and not self._engine.is_idle:
            self.lose_worker()
        try:
            request = AmendmentRequest(number, move.change)
            self.recipe = self._engine.amend(make_job(JOB, self.recipe).id, request)
        except (JobRejected, KeyError):
            return


def measure_replays(*, quick: bool) -> FigureRow:
    """Return the row: how many scripts came out again. Raises `UserError` without the packages of the benchmarks."""
    if find_spec("tokenizers") is None or find_spec("torch") is None:
        raise UserError("This needs the engine and small models: pip install 'darkroom-bot[all]'.")
    rng = Random(SEED)
    runs = list[SteeredRun]()
    equal_count = 0
    with TemporaryDirectory(prefix="darkroom-bench-") as folder:
        for model, count, quick_count in MODELS:
            family = load_small_model(model.name, Path(folder))
            for _ in range(quick_count if quick else count):
                run = run_script(family, draw_script(model, rng))
                equal_count += has_same_latents(run.recipe, run.latents, draw_anew(family, run.recipe))
                runs.append(run)
    note = f"{sum(len(run.recipe.amendments) for run in runs)} changes were made, "
    note += f"{sum(run.loss_count for run in runs)} workers lost; neighbours in the batch"
    return FigureRow(REPLAY_NAME, equal_count, f"= {len(runs)}", "scripts", note, len(runs), len(runs))


def load_small_model(name: str, folder: Path) -> Family:
    """Load the embedded model, or build a small network of this kind with random weights."""
    if name == "embedded":
        return load_model(name, folder)
    with silence_libraries():
        save_small_pipeline(name, folder / name)
    return load_model(str(folder / name), folder)


def run_script(family: Family, script: Script) -> SteeredRun:
    """Steer a job as the script says, to its end."""
    run = SteeredRun(family, script.recipe, script.neighbour)
    run.begin()
    for number, move in enumerate(script.moves, 1):
        run.make(move, number)
    run.finish()
    return run


def draw_anew(family: Family, recipe: Recipe) -> Mapping[int, torch.Tensor]:
    """Draw a recipe from the start, alone; return its latents by image."""
    run = SteeredRun(family, msgspec.convert(msgspec.to_builtins(recipe), Recipe))  # as another worker would read it
    run.begin()
    run.finish()
    return run.latents


def has_same_latents(recipe: Recipe, steered: Mapping[int, torch.Tensor], anew: Mapping[int, torch.Tensor]) -> bool:
    """Whether both have the recipe's final images, equal to the bit."""
    images = list_final_images(recipe)
    if not tuple(sorted(steered)) == tuple(sorted(anew)) == images:
        return False
    return all(torch.equal(steered[image], anew[image]) for image in images)


STEPS = 10
BUCKET = 8  # rows: the pinned batch shape of `exact` mode
MOST_MOVES = 8
MOST_PAUSE = 3  # steps between two changes
LOSS_SHARE = 0.3  # of the changes, before which the worker is lost
WORDS = ("fox", "terrier", "sea", "red apple", "night")
DEADLINE = 4e9  # far in the future: no job expires here


@dataclass(frozen=True)
class Move:
    """A change that is asked for after some more steps, perhaps just after the job's worker was lost."""

    steps: int
    is_worker_lost: bool
    change: Change


@dataclass(frozen=True)
class Script:
    """What happens to one job; `neighbour` runs in the same batches."""

    recipe: Recipe
    moves: tuple[Move, ...]
    neighbour: Recipe


def draw_script(model: ScriptedModel, rng: Random) -> Script:
    """Draw a script for a model."""
    moves = tuple(
        Move(rng.randint(0, MOST_PAUSE), rng.random() < LOSS_SHARE, _draw_change(rng))
        for _ in range(rng.randint(1, MOST_MOVES))
    )
    recipe, neighbour = (_draw_recipe(model, rng, count) for count in (rng.randint(1, MAX_COUNT), 1))
    return Script(msgspec.structs.replace(recipe, bucket=BUCKET), moves, neighbour)


def make_job(number: int, recipe: Recipe) -> Job:
    """Return job `number` of a user of its own."""
    share = BillingKey("standard", "bench", f"user-{number}")
    return Job(id=f"{number:026d}", task=recipe, billing_key=share, cost=1.0, deadline=DEADLINE)


def _draw_recipe(model: ScriptedModel, rng: Random, count: int) -> Recipe:
    return Recipe(
        concepts=(Concept(rng.choice(WORDS)),),
        model=model.name,
        sampler=rng.choice(model.samplers),
        steps=STEPS,
        seed=rng.randrange(2**31),
        guidance=rng.choice([1.0, 3.0]),
        width=model.side,
        height=model.side,
        count=count,
        dtype="float32",
    )


def _draw_change(rng: Random) -> Change:
    match rng.randrange(5):
        case 0:
            texts = rng.sample(WORDS, rng.randint(1, 3))
            concepts = tuple(Concept(text, rng.choice([0.25, 0.5, 1.0, 2.0])) for text in texts)
            return SetConcepts(concepts, rng.random() < 0.3, rng.randint(0, 6))
        case 1:
            return SetNegative(rng.choice(WORDS))
        case 2:
            return SetGuidance(rng.choice([1.0, 2.0, 6.0]), 0.0, rng.choice([0.6, 1.0]))
        case 3:
            return DropImages(tuple(rng.sample(range(MAX_COUNT), rng.randint(1, 2))))
        case _:
            places = tuple(rng.sample(range(MAX_COUNT), rng.randint(1, MAX_COUNT - 1)))
            return SplitImage(rng.randrange(MAX_COUNT), places, rng.randrange(100))
