"""The preview that shows a change comes before those of other jobs."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from msgspec.structs import replace

from engine.bus import Claim
from engine.contract import AmendmentRequest, Concept, Frame, SetConcepts
from engine.core.engine import StepDone
from engine.worker.run import JobRun
from engine.worker.run_output import RunOutput
from shared.worker_harness import make_job, wait_until

JOBS = tuple(f"{number:026d}" for number in range(3))


def make_output(rendered: list[str], encoded: list[str], *, has_shared_cores: bool = True) -> RunOutput:
    """Makes an output that notes what it renders and encodes."""

    def render_frame(event: StepDone, *_: object) -> Future[Frame]:
        rendered.append(event.job)
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


@pytest.mark.asyncio
async def test_a_preview_that_shows_a_change_comes_first_and_once() -> None:
    rendered = list[str]()
    output, runs = make_output(rendered, []), make_runs()
    for run in runs:
        output.queue_preview(run, StepDone(run.job.id, 0, 1, 4, torch.zeros(1)))
    output.hurry_preview(runs[2])
    output.queue_preview(runs[2], StepDone(JOBS[2], 0, 2, 4, torch.zeros(1)))
    previews = asyncio.create_task(output.send_previews())
    await wait_until(lambda: len(rendered) == 3)
    previews.cancel()
    assert rendered == [JOBS[2], JOBS[0], JOBS[1]]
    assert not runs[2].is_preview_hurried


@pytest.mark.asyncio
@pytest.mark.parametrize("has_shared_cores", [True, False])
async def test_texts_are_encoded_beside_the_steps_only_where_that_costs_no_turn(has_shared_cores: bool) -> None:
    encoded = list[str]()
    output = make_output([], encoded, has_shared_cores=has_shared_cores)
    await output.prepare_texts(make_runs()[0], AmendmentRequest(1, SetConcepts((Concept("terrier"),))))
    assert encoded == ([] if has_shared_cores else ["text"])
