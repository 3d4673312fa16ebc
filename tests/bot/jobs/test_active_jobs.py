"""Active jobs: the running sum of the remaining cost always equals a fresh count."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_frame

from bot.jobs.active_jobs import MAX_PAUSE_SECONDS, ActiveJobs
from bot.store import JobRecord
from engine.contract import Concept, Frame, JobModelLoading, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="apple"),),
    model="embedded",
    sampler="ddpm",
    steps=20,
    seed=7,
    guidance=3.0,
    width=64,
    height=64,
    dtype="float32",
)
JOBS = [f"01ARZ3NDEKTSV4RRFFQ69G5FA{letter}" for letter in "ABCDEFGH"]


def a_record(job: str, pool: str, cost: float, step: int = 0) -> JobRecord:
    return JobRecord(
        id=job,
        key=None,
        ordinal=0,
        state="running",
        action="imagine",
        parent=None,
        prompt="apple",
        notes=(),
        task=RECIPE,
        member="a",
        member_name="A",
        guild="g",
        tier="standard",
        weight=1.0,
        pool=pool,
        model="embedded",
        account="a",
        rows=8,
        cost=cost,
        charged=cost,
        billed=0.0,
        attempt=1,
        attempts_without_progress=0,
        step=step,
        epoch=1,
        worker="w",
        cancelling=False,
        created=0.0,
        deadline=9.0,
        sent=1.0,
        started=2.0,
        ended=None,
        seconds=None,
        ms_per_step=None,
        reason="",
        blame=None,
    )


def a_frame(job: str, step: int) -> Frame:
    return Frame(job=job, image=0, epoch=1, step=step, total_steps=20, picture=b"\xff\xd8\xff", seconds_left=1.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_remaining_cost_equals_a_fresh_count(seed: int) -> None:
    rng = random.Random(seed)
    active_jobs = ActiveJobs()
    for _ in range(300):
        job = rng.choice(JOBS)
        step = rng.randrange(21)
        match rng.choice(["put", "frame", "frame", "drop"]):
            case "put":
                active_jobs.put(a_record(job, rng.choice(["default", "large"]), rng.random(), step), 1.0)
            case "frame":
                active_jobs.record_frame(a_frame(job, step), 2.0)
            case _:
                active_jobs.remove(job)
        for pool in ("default", "large", "nobody's"):
            expected = sum(run.remaining_cost for run in active_jobs.by_id.values() if run.record.pool == pool)
            assert active_jobs.remaining_cost(pool) == pytest.approx(expected, abs=1e-9)
    for job in JOBS:
        active_jobs.remove(job)
    assert active_jobs.remaining_cost("default") == 0.0


def a_loading(job: str, epoch: int, model: str = "embedded") -> JobModelLoading:
    return JobModelLoading(job=job, epoch=epoch, model=model, loaded_share=0.5)


def test_model_loading_counts_as_a_heartbeat_unless_it_is_foreign_or_late() -> None:
    active_jobs = ActiveJobs()
    active_jobs.put(a_record(JOBS[0], "default", 1.0), 1.0)
    foreign = a_loading(JOBS[1], 1), a_loading(JOBS[0], 0), a_loading(JOBS[0], 2**62), a_loading(JOBS[0], 1, "large")
    for foreign_update in foreign:
        assert active_jobs.record_loading(foreign_update, 2.0) is None
    run = active_jobs.by_id[JOBS[0]]
    assert run.last_heartbeat == 1.0
    assert active_jobs.record_loading(a_loading(JOBS[0], 1), 2.0) is run
    assert run.last_heartbeat == 2.0
    assert active_jobs.record_frame(a_frame(JOBS[0], 1), 3.0) is run
    assert active_jobs.record_loading(a_loading(JOBS[0], 1), 4.0) is None, "a preview came before"
    active_jobs.put(a_record(JOBS[0], "default", 1.0), 5.0)
    assert active_jobs.record_loading(a_loading(JOBS[0], 1), 6.0) is None
    active_jobs.put(replace(a_record(JOBS[0], "default", 1.0), epoch=2), 7.0)
    assert active_jobs.record_loading(a_loading(JOBS[0], 2), 8.0) is not None, "another worker loads it"


def test_a_frame_of_another_epoch_changes_nothing() -> None:
    active_jobs = ActiveJobs()
    run = active_jobs.put(a_record(JOBS[0], "p", 8.0, step=3), 1.0)
    for epoch in (0, 2, 2**62):
        assert active_jobs.record_frame(replace_frame(a_frame(JOBS[0], 20), epoch=epoch), 2.0) is None
    assert (run.epoch, run.step, run.last_heartbeat, active_jobs.remaining_cost("p")) == (1, 3, 1.0, 8.0 * 17 / 20)


def test_a_frame_before_the_start_report_is_shown_but_counts_no_step() -> None:
    active_jobs = ActiveJobs()
    sent_record = _as_sent(a_record(JOBS[0], "p", 8.0))
    run = active_jobs.put(sent_record, 1.0)
    assert active_jobs.record_frame(a_frame(JOBS[0], 20), 2.0) is None, "it is of the earlier claim"
    assert active_jobs.record_frame(replace_frame(a_frame(JOBS[0], 20), epoch=2**62), 2.0) is run
    assert (run.step, active_jobs.remaining_cost("p")) == (0, 8.0)
    active_job = active_jobs.put(replace(sent_record, state="running", epoch=7), 3.0)
    assert active_jobs.record_loading(a_loading(JOBS[0], 7), 4.0) is None, "a preview came before"
    assert active_jobs.record_frame(replace_frame(a_frame(JOBS[0], 5), epoch=7), 4.0) is active_job
    assert active_job.step == 5


def _as_sent(record: JobRecord) -> JobRecord:
    return replace(record, state="sent")


def test_rows_of_paused_jobs_are_spare_if_their_workers_agree() -> None:
    active_jobs, first, second, third = ActiveJobs(), *JOBS[:3]
    for job in (first, second):
        active_jobs.put(a_record(job, "p", 1.0), 0.0)
    assert active_jobs.count_paused_rows("p", 16, 8, 1.0) == 0, "no job is paused: the workers only lag behind"
    active_jobs.paused_since[first] = 1.0
    assert active_jobs.count_paused_rows("p", 16, 0, 2.0) == 0, "it continues, or another job has its rows"
    assert active_jobs.count_paused_rows("p", 16, 8, 2.0) == 8
    assert active_jobs.count_paused_rows("p", 16, 16, 2.0) == 8, "no more rows than the paused jobs have"
    assert active_jobs.count_paused_rows("q", 16, 8, 2.0) == 0
    active_jobs.put(_as_sent(a_record(third, "p", 1.0)), 0.0)
    assert active_jobs.count_paused_rows("p", 16, 8, 2.0) == 8, "the third job counts as using its rows"
    assert active_jobs.count_paused_rows("p", 16, 8, 1.0 + MAX_PAUSE_SECONDS) == 0
    active_jobs.record_frame(a_frame(first, 5), 3.0)
    assert first not in active_jobs.paused_since, "it continues"


def test_rows_of_a_held_job_are_free_for_others() -> None:
    active_jobs, held, running = ActiveJobs(), *JOBS[:2]
    active_jobs.put(_as_sent(a_record(held, "p", 1.0)), 0.0)
    active_jobs.put(a_record(running, "p", 1.0), 0.0)
    assert active_jobs.count_paused_rows("p", 16, 8, 1.0) == 0
    active_jobs.next_attempt_at[held] = 60.0
    assert active_jobs.count_paused_rows("p", 16, 8, 1.0) == 8
    assert active_jobs.count_paused_rows("other", 16, 8, 1.0) == 0
    active_jobs.paused_since[running] = 0.0
    assert active_jobs.count_paused_rows("p", 16, 8, 1.0) == 8, "its worker still has the rows in use"
    assert active_jobs.count_paused_rows("p", 16, 16, 1.0) == 16


def test_a_changed_row_of_an_earlier_claim_comes_too_late() -> None:
    active_jobs = ActiveJobs()
    record = a_record(JOBS[0], "p", 1.0)
    active_jobs.put(replace(record, epoch=2), 0.0)
    active_jobs.follow_record(replace(record, cost=3.0))
    assert active_jobs.by_id[JOBS[0]].record.epoch == 2
    active_jobs.follow_record(replace(record, cost=3.0, epoch=2))
    assert active_jobs.remaining_cost("p") == pytest.approx(3.0)
