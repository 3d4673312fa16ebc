"""The board's sum of what is left is kept, not counted anew: whatever happens, it is what a count would give."""

from __future__ import annotations

import random

import pytest

from bot.queue.board import Board
from bot.store import Record
from engine.job import Concept, Frame, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="apple"),), model="embedded", sampler="ddpm", steps=20, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip
JOBS = [f"01ARZ3NDEKTSV4RRFFQ69G5FA{letter}" for letter in "ABCDEFGH"]


def a_record(job: str, pool: str, cost: float, step: int = 0) -> Record:
    return Record(
        id=job, key=None, ordinal=0, state="running", action="imagine", parent=None, prompt="apple", notes=(),
        task=RECIPE, member="a", member_name="A", guild="g", tier="standard", weight=1.0, pool=pool, model="embedded",
        account="a", rows=8, cost=cost, charged=cost, billed=0.0, attempt=1, barren=0, step=step, epoch=1, worker="w",
        cancelling=False, created=0.0, deadline=9.0, sent=1.0, started=2.0, ended=None, seconds=None, ms_per_step=None,
        reason="", blame=None,
    )  # fmt: skip


def a_frame(job: str, step: int) -> Frame:
    return Frame(job=job, image=0, epoch=1, step=step, of=20, picture=b"\xff\xd8\xff", seconds_left=1.0)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_is_what_a_count_would_give(seed: int) -> None:
    chance, board = random.Random(seed), Board()
    for _ in range(300):
        job, step = chance.choice(JOBS), chance.randrange(21)
        match chance.choice(["put", "frame", "frame", "drop"]):
            case "put":
                board.put(a_record(job, chance.choice(["default", "large"]), chance.random(), step), 1.0)
            case "frame":
                board.frame(a_frame(job, step), 2.0)
            case _:
                board.drop(job)
        for pool in ("default", "large", "nobody's"):
            counted = sum(run.cost_left for run in board.runs.values() if run.record.pool == pool)
            assert board.cost_left(pool) == pytest.approx(counted, abs=1e-9)
    for job in JOBS:
        board.drop(job)
    assert board.cost_left("default") == 0.0
