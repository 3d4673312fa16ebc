"""The board's sum of what is left is kept, not counted anew: whatever happens, it is what a count would give."""

from __future__ import annotations

import random

import pytest

from bot.queue.board import Board
from bot.store import Record
from engine.job import Concept, Frame, Loading, Recipe

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


def a_loading(job: str, epoch: int, model: str = "embedded") -> Loading:
    return Loading(job=job, epoch=epoch, model=model, done=0.5)


def test_a_model_on_its_way_is_a_sign_of_life_unless_it_is_anothers_or_too_late() -> None:
    board = Board()
    board.put(a_record(JOBS[0], "default", 1.0), 1.0)
    for bad in (a_loading(JOBS[1], 1), a_loading(JOBS[0], 0), a_loading(JOBS[0], 1, "large")):
        assert board.loading(bad, 2.0) is None
    assert board.runs[JOBS[0]].beat == 1.0
    run = board.loading(a_loading(JOBS[0], 3), 2.0)
    assert run is not None
    assert (run.epoch, run.beat) == (3, 2.0)
    assert board.frame(a_frame(JOBS[0], 1), 3.0) is None  # of the epoch before
    board.runs[JOBS[0]].epoch = 1
    assert board.frame(a_frame(JOBS[0], 1), 3.0) is run
    assert board.loading(a_loading(JOBS[0], 1), 4.0) is None, "a preview of it was there already"
    board.put(a_record(JOBS[0], "default", 1.0), 5.0)
    assert board.loading(a_loading(JOBS[0], 1), 6.0) is None
    assert board.loading(a_loading(JOBS[0], 2), 6.0) is not None, "another worker fetches it"
