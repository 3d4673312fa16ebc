"""The board's sum of what is left is kept, not counted anew: whatever happens, it is what a count would give."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_frame

from bot.queue.board import PAUSED, Board
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
    others = a_loading(JOBS[1], 1), a_loading(JOBS[0], 0), a_loading(JOBS[0], 2**62), a_loading(JOBS[0], 1, "large")
    for bad in others:
        assert board.loading(bad, 2.0) is None
    run = board.runs[JOBS[0]]
    assert run.beat == 1.0
    assert board.loading(a_loading(JOBS[0], 1), 2.0) is run
    assert run.beat == 2.0
    assert board.frame(a_frame(JOBS[0], 1), 3.0) is run
    assert board.loading(a_loading(JOBS[0], 1), 4.0) is None, "a preview of it was there already"
    board.put(a_record(JOBS[0], "default", 1.0), 5.0)
    assert board.loading(a_loading(JOBS[0], 1), 6.0) is None
    board.put(replace(a_record(JOBS[0], "default", 1.0), epoch=2), 7.0)
    assert board.loading(a_loading(JOBS[0], 2), 8.0) is not None, "another worker fetches it"


def test_a_frame_of_another_epoch_than_the_claims_changes_nothing() -> None:
    board = Board()
    run = board.put(a_record(JOBS[0], "p", 8.0, step=3), 1.0)
    for epoch in (0, 2, 2**62):
        assert board.frame(replace_frame(a_frame(JOBS[0], 20), epoch=epoch), 2.0) is None
    assert (run.epoch, run.step, run.beat, board.cost_left("p")) == (1, 3, 1.0, 8.0 * 17 / 20)


def test_before_anybody_said_that_it_began_a_frame_is_shown_and_counts_as_no_step() -> None:
    board = Board()
    waiting = _sent(a_record(JOBS[0], "p", 8.0))
    run = board.put(waiting, 1.0)
    assert board.frame(a_frame(JOBS[0], 20), 2.0) is None, "of the claim before"
    assert board.frame(replace_frame(a_frame(JOBS[0], 20), epoch=2**62), 2.0) is run
    assert (run.step, board.cost_left("p")) == (0, 8.0)
    began = board.put(replace(waiting, state="running", epoch=7), 3.0)
    assert board.loading(a_loading(JOBS[0], 7), 4.0) is None, "a preview was there already"
    assert board.frame(replace_frame(a_frame(JOBS[0], 5), epoch=7), 4.0) is began
    assert began.step == 5


def _sent(record: Record) -> Record:
    return replace(record, state="sent")


def test_rows_of_what_is_paused_are_spare_where_its_workers_say_so_too() -> None:
    board, first, second, third = Board(), *JOBS[:3]
    for job in (first, second):
        board.put(a_record(job, "p", 1.0), 0.0)
    assert board.spare("p", 16, 8, 1.0) == 0, "nobody paused anything: the workers are behind"
    board.paused[first] = 1.0
    assert board.spare("p", 16, 0, 2.0) == 0, "it goes on, or somebody has its rows"
    assert board.spare("p", 16, 8, 2.0) == 8
    assert board.spare("p", 16, 16, 2.0) == 8, "not more than is paused"
    assert board.spare("q", 16, 8, 2.0) == 0
    board.put(_sent(a_record(third, "p", 1.0)), 0.0)
    assert board.spare("p", 16, 8, 2.0) == 8, "its rows are for the third, which is counted as taken"
    assert board.spare("p", 16, 8, 1.0 + PAUSED) == 0
    board.frame(a_frame(first, 5), 3.0)
    assert first not in board.paused, "it goes on"
