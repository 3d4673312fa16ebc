"""Random scripts of steering: a recipe, the changes that are asked of it, and where its worker is lost. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import msgspec

from engine.contract import (
    MAX_COUNT,
    BillingKey,
    Change,
    Concept,
    DropImages,
    Job,
    Recipe,
    Sampler,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
)

STEPS = 10
BUCKET = 8  # rows: the pinned batch shape of `exact` mode
MOST_MOVES = 8
MOST_PAUSE = 3  # steps between two changes
LOSS_SHARE = 0.3  # of the changes, before which the worker is lost
WORDS = ("fox", "terrier", "sea", "red apple", "night")
DEADLINE = 4e9  # far in the future: no job expires here


@dataclass(frozen=True)
class ScriptedModel:
    """The model of a script: its name, a small side of its pictures in pixels, and samplers that it takes."""

    name: str
    side: int
    samplers: tuple[Sampler, ...]


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
        Move(rng.randint(0, MOST_PAUSE), rng.random() < LOSS_SHARE, rng.choice(_CHANGES)(rng))
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


def _draw_concepts(rng: Random) -> Change:
    texts = rng.sample(WORDS, rng.randint(1, 3))
    concepts = tuple(Concept(text, rng.choice([0.25, 0.5, 1.0, 2.0])) for text in texts)
    return SetConcepts(concepts, rng.random() < 0.3, rng.randint(0, 6))


def _draw_negative(rng: Random) -> Change:
    return SetNegative(rng.choice(WORDS))


def _draw_guidance(rng: Random) -> Change:
    return SetGuidance(rng.choice([1.0, 2.0, 6.0]), 0.0, rng.choice([0.6, 1.0]))


def _draw_drop(rng: Random) -> Change:
    return DropImages(tuple(rng.sample(range(MAX_COUNT), rng.randint(1, 2))))


def _draw_split(rng: Random) -> Change:
    places = tuple(rng.sample(range(MAX_COUNT), rng.randint(1, MAX_COUNT - 1)))
    return SplitImage(rng.randrange(MAX_COUNT), places, rng.randrange(100))


_CHANGES: tuple[Callable[[Random], Change], ...] = (
    _draw_concepts,
    _draw_negative,
    _draw_guidance,
    _draw_drop,
    _draw_split,
)
