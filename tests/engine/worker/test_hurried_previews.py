"""The preview that shows a change comes before those of other jobs."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from msgspec.structs import replace

from engine.batching.engine import StepDone
from engine.bus import Claim
from engine.contract import Amendment, AmendmentRequest, Concept, DropImages, Frame, Recipe, SetConcepts, SetGuidance
from engine.worker.run import JobRun
from engine.worker.run_output import RunOutput
from shared.worker_harness import make_job, wait_until

JOBS = tuple(f"{number:026d}" for number in range(3))


def make_output(rendered: list[StepDone], encoded: list[str], *, has_shared_cores: bool = True) -> RunOutput:
    """Makes an output that notes what it renders and encodes."""

    def render_frame(event: StepDone, *_: object) -> Future[Frame]:
        rendered.append(event)
        future = Future[Frame]()
        future.set_result(
            Frame(job=event.job, image=0, epoch=1, step=event.step, total_steps=4, picture=b"jpeg", seconds_left=1.0)
        )
        return future

    def encode_change(*_: object) -> Future[None]:
        encoded.append("text")
        future = Future[None]()
        future.set_result(None)
        return future

    async def publish_frame(_: Frame) -> None:
        pass

    decode_worker = SimpleNamespace(
        render_frame=render_frame, encode_change=encode_change, cores=SimpleNamespace(is_shared=has_shared_cores)
    )
    watchdog = SimpleNamespace(start_phase=lambda *_: None, end_phase=lambda *_: None)
    parts = (
        SimpleNamespace(publish_frame=publish_frame),
        decode_worker,
        SimpleNamespace(),
        SimpleNamespace(),
        watchdog,
    )
    return RunOutput(*(cast("Any", part) for part in parts))


def make_runs() -> list[JobRun]:
    return [
        JobRun(replace(make_job(), id=job), Claim(job, "one", 5, 5), 0.0, unpublished_images={0}, is_watched=True)
        for job in JOBS
    ]


def amend_run(run: JobRun, step: int, output: RunOutput) -> None:
    assert isinstance(run.job.task, Recipe)
    amendment = Amendment(len(run.amendments) + 1, step, SetGuidance(3.0))
    run.follow_amendments(replace(run.job.task, amendments=(*run.amendments, amendment)))
    output.hurry_preview(run)


def make_event(job: str, step: int, image: int = 0) -> StepDone:
    return StepDone(job, image, step, 4, torch.zeros(1))


@pytest.mark.asyncio
async def test_a_preview_that_shows_a_change_comes_first_and_once() -> None:
    rendered = list[StepDone]()
    output = make_output(rendered, [])
    runs = make_runs()
    for run in runs:
        output.queue_preview(run, make_event(run.job.id, 1))
    amend_run(runs[2], 1, output)
    output.queue_preview(runs[2], make_event(JOBS[2], 2))
    previews = asyncio.create_task(output.send_previews())
    await wait_until(lambda: len(rendered) == 3)
    previews.cancel()
    assert [event.job for event in rendered] == [JOBS[2], JOBS[0], JOBS[1]]
    assert not runs[2].unshown_changes


@pytest.mark.asyncio
async def test_an_older_preview_of_a_changed_job_does_not_take_the_turn_of_the_change() -> None:
    rendered = list[StepDone]()
    output = make_output(rendered, [])
    runs = make_runs()
    previews = asyncio.create_task(output.send_previews())
    amend_run(runs[2], 2, output)
    output.queue_preview(runs[2], make_event(JOBS[2], 2))  # the step before the change
    await wait_until(lambda: len(rendered) == 1)
    for run in runs:
        output.queue_preview(run, make_event(run.job.id, 3))
    await wait_until(lambda: len(rendered) == 4)
    previews.cancel()
    assert [(event.job, event.step) for event in rendered][:2] == [(JOBS[2], 2), (JOBS[2], 3)]


def test_of_a_jobs_images_the_changed_one_is_shown_first() -> None:
    output, (run, *_) = make_output([], []), make_runs()
    run.unpublished_images = {0, 1}
    amend_run(run, 1, output)
    amend_run(run, 2, output)
    run.pending_previews = {0: make_event(JOBS[0], 1), 1: make_event(JOBS[0], 2, 1)}
    assert run.take_preview().image == 1
    assert run.unshown_changes == [2], "the newer change is not shown yet"
    assert run.take_preview().image == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("has_shared_cores", [True, False])
async def test_texts_are_encoded_beside_the_steps_only_where_that_costs_no_turn(has_shared_cores: bool) -> None:
    encoded = list[str]()
    output = make_output([], encoded, has_shared_cores=has_shared_cores)
    for change in (SetConcepts((Concept("terrier"),)), SetGuidance(5.0), DropImages((0,))):
        await output.prepare_texts(make_runs()[0], AmendmentRequest(1, change))
    assert encoded == ([] if has_shared_cores else ["text", "text"])
