"""`--best`: of twice as many candidates the judge chooses those nearest to the prompt, and a kill changes no choice."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from io import BytesIO
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from engine.batching.job_images import build_images
from engine.batching.trajectory import LatentsDone, StepDone
from engine.bus.claims import Claim
from engine.contract import (
    Amendment,
    Concept,
    Frame,
    JobFinished,
    JobRejected,
    Ladder,
    PictureReady,
    Recipe,
    SetConcepts,
    decode,
)
from engine.models.families.stable_diffusion import StableDiffusion
from engine.output.decode_worker import choose_candidates, join_concepts
from engine.worker import run_control
from engine.worker.local_run import run_locally
from engine.worker.run import JobRun
from engine.worker.run_output import RunOutput
from shared.worker_harness import JOB, WorkerHarness, hash_content, make_job, wait_until_midway

Make = Callable[..., Any]
BEST: dict[str, Any] = {"count": 2, "candidate_count": 4, "guidance": 3.0, "bucket": 8}


def read_seed(png: bytes) -> int:
    with Image.open(BytesIO(png)) as picture:
        match = re.search(r"Seed: (\d+)", picture.info["parameters"])
    assert match is not None
    return int(match[1])


def read_pixels(png: bytes) -> bytes:
    with Image.open(BytesIO(png)) as picture:
        return picture.tobytes()


def score(family: StableDiffusion, pictures: Sequence[bytes], prompt: str) -> list[float]:
    assert family.judge is not None
    return family.judge.score_pictures([Image.open(BytesIO(png)) for png in pictures], prompt)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "native"])
def test_the_pictures_are_the_candidates_that_the_judge_finds_nearest(embedded: StableDiffusion, sampler: str) -> None:
    families = {"embedded": embedded}
    frames = list[Frame]()
    plain = make_job(steps=8, sampler=sampler, **{**BEST, "count": 4, "candidate_count": 0})
    candidates = run_locally(plain, families).pictures
    scores = score(embedded, candidates, "a red apple")
    nearest = sorted(range(4), key=lambda image: -scores[image])[:2]
    job = make_job(steps=8, sampler=sampler, ladder=True, **BEST)
    best = run_locally(job, families, on_frame=frames.append)
    assert {frame.image for frame in frames} <= {0, 1}, "only as many develop as will be shown"
    assert [read_seed(png) for png in best.pictures] == [7 + image for image in nearest]
    assert [read_pixels(png) for png in best.pictures] == [read_pixels(candidates[image]) for image in nearest]
    assert [decode(ladder, Ladder).image for ladder in best.ladders] == [0, 1]
    chosen_job = replace(job, task=replace(job.task, chosen_candidates=tuple(nearest)))
    repeated = run_locally(chosen_job, families)
    assert repeated.pictures == best.pictures, "the recipe of the finished job draws the same pictures, and no others"
    assert [decode(ladder, Ladder).keyframes[-1] for ladder in repeated.ladders] == [
        decode(ladder, Ladder).keyframes[-1] for ladder in best.ladders
    ]


def test_the_judge_prefers_the_picture_of_the_prompt(embedded: StableDiffusion) -> None:
    """Colours alone: what the judge learned about drawings is measured by `darkroom train evaluate`."""
    assert embedded.judge is not None
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("white", "green")]
    scores = embedded.judge.score_pictures(pictures, "a red apple")
    assert scores == embedded.judge.score_pictures(pictures, "a red apple")
    assert all(-1 <= value <= 1 for value in scores)
    assert scores[0] != scores[1]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_that_moves_to_another_worker_chooses_the_same_pictures(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for timeout in ("SAVE_TIMEOUT_SECONDS", "HAND_BACK_TIMEOUT_SECONDS"):
        monkeypatch.setattr(run_control, timeout, 60.0)  # a step of eight takes longer on a busy machine
    job = make_job(steps=40, count=4, candidate_count=8, bucket=8)
    local = await asyncio.to_thread(run_locally, job, harness.families)
    first, task = await harness.start_worker("one")
    await harness.bot.dispatch(job)
    await wait_until_midway(first)
    first.drain()
    await task
    assert [each.image for each in await harness.bot.get_snapshots(JOB, 8)] == list(range(8))
    await harness.start_worker("two")
    results = await harness.collect_results()
    pictures = [value for value in results if isinstance(value, PictureReady)]
    assert [picture.image for picture in pictures] == [0, 1, 2, 3]
    assert [picture.sha256 for picture in pictures] == [hash_content(png) for png in local.pictures]
    finished = results[-1]
    assert isinstance(finished, JobFinished)
    assert [7 + candidate for candidate in finished.chosen_candidates] == [read_seed(png) for png in local.pictures]
    assert await harness.bot.get_snapshots(JOB, 8) == []


def test_the_highest_scores_win_and_of_equal_ones_the_lower_candidate() -> None:
    candidates = [LatentsDone(JOB, image, torch.full((1,), float(image)), ()) for image in range(4)]
    job, pictures = choose_candidates(make_job(**BEST), candidates, [0.1, 0.3, 0.2, 0.3])
    assert isinstance(job.task, Recipe)
    assert job.task.chosen_candidates == (1, 3)
    assert [(picture.image, picture.latents.item()) for picture in pictures] == [(0, 1.0), (1, 3.0)]
    assert (job.task.drawn_count, job.task.needs_choice) == (2, False)


def test_pictures_are_compared_with_the_plain_words_of_positive_weight(recipe: Make) -> None:
    concepts = (Concept("a (red:1.4) apple", 2.0), Concept("worm", -0.5), Concept(" on [a] table "))
    assert join_concepts(recipe(concepts=concepts)) == "a red apple, on a table"
    steered = recipe(concepts=concepts, amendments=(Amendment(1, 3, SetConcepts((Concept("a terrier"),))),))
    assert join_concepts(steered) == "a terrier", "the pictures of a steered job are judged by its last words"


def test_a_model_without_a_judge_and_a_false_choice_are_refused(affine: Any, recipe: Make, job: Make) -> None:
    for fields, reason in (
        ({"count": 2, "candidate_count": 4}, "affine has no judge"),
        ({"count": 2, "candidate_count": 4, "chosen_candidates": (1,)}, "more or fewer"),
    ):
        with pytest.raises(JobRejected, match=reason):
            build_images(job(recipe(**fields)), {"affine": affine})
    assert len(build_images(job(recipe(count=1, candidate_count=2, chosen_candidates=(1,))), {"affine": affine})) == 1


@pytest.mark.asyncio
async def test_after_the_choice_no_preview_of_a_candidate_is_rendered() -> None:
    rendered = list[int]()
    finished = list[tuple[int, ...]]()
    run = JobRun(make_job(**BEST), Claim(JOB, "one", 5, 5), start_time=0.0, is_watched=True)

    def resolve(value: object) -> Future[Any]:
        future = Future[Any]()
        future.set_result(value)
        return future

    async def publish_content(*_: object) -> None:
        await asyncio.sleep(0.05)  # time for the previews

    async def finish_run(_: object, chosen: tuple[int, ...]) -> None:
        finished.append(chosen)

    decode_worker = SimpleNamespace(
        score_candidates=lambda *_: resolve([0.1, 0.3, 0.2, 0.3]),
        render_picture=lambda *_: resolve(bytes(24)),
        render_frame=lambda event, *_: rendered.append(event.image),
        has_picture_check=False,
    )
    watchdog = SimpleNamespace(start_phase=lambda *_: None, end_phase=lambda *_: None)
    publisher = SimpleNamespace(publish_content=publish_content, finish_run=finish_run)
    bus = SimpleNamespace()
    upscaler = SimpleNamespace()
    output = RunOutput(*(cast("Any", part) for part in (bus, decode_worker, upscaler, publisher, watchdog)))
    for image in range(2):
        output.queue_preview(run, StepDone(JOB, image, 3, 4, torch.zeros(1)))
    for image in range(3):
        await output.publish_image(run, LatentsDone(JOB, image, torch.zeros(1), ()))
    last = asyncio.create_task(output.publish_image(run, LatentsDone(JOB, 3, torch.zeros(1), ())))
    await asyncio.sleep(0.02)
    previews = asyncio.create_task(output.send_previews())
    await last
    previews.cancel()
    assert (rendered, finished) == ([], [(1, 3)])
