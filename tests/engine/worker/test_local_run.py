"""`darkroom imagine` without a running bot: one job on the embedded model, from recipe to PNG."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from engine.contract import Frame, JobRejected, Ladder, decode
from engine.models.families.stable_diffusion import StableDiffusion
from engine.output.decode_worker import DecodeWorker
from engine.worker.local_run import run_locally

Make = Callable[..., Any]


@pytest.mark.slow
def test_a_job_yields_pictures_previews_and_ladders(embedded: StableDiffusion, recipe: Make, job: Make) -> None:
    one = job(recipe("a red cat", model="embedded", guidance=3.5, width=64, height=64, steps=8, count=2))
    frames: list[Frame] = []
    first = run_locally(one, {"embedded": embedded}, on_frame=frames.append)
    assert first.frame_count == len(frames) > 0
    assert {frame.job for frame in frames} == {one.id}
    assert first.seconds > 0
    assert first.ms_per_step > 0
    for content in first.pictures:
        with Image.open(BytesIO(content)) as picture:
            assert (picture.format, picture.size) == ("PNG", (256, 256))
    assert [decode(ladder, Ladder).image for ladder in first.ladders] == [0, 1]
    second_run = run_locally(one, {"embedded": embedded})
    assert second_run.pictures == first.pictures
    assert second_run.ladders == first.ladders


def test_a_job_without_a_ladder_writes_none(affine: Any, recipe: Make, job: Make) -> None:
    result = run_locally(job(recipe(steps=3), ladder=False), {"affine": affine})
    assert (len(result.pictures), result.ladders, result.frame_count) == (1, [], 0)


def test_a_failed_preview_does_not_fail_the_job(
    affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Frame:
        raise RuntimeError("no preview")

    monkeypatch.setattr(DecodeWorker, "_render_frame", fail)
    frames: list[Frame] = []
    result = run_locally(job(recipe(steps=200), ladder=False), {"affine": affine}, on_frame=frames.append)
    assert (len(result.pictures), result.frame_count, frames) == (1, 0, [])


def test_a_job_for_an_unknown_model_is_refused(affine: Any, recipe: Make, job: Make) -> None:
    with pytest.raises(JobRejected, match="no model called"):
        run_locally(job(recipe(model="sdxl")), {"affine": affine})


def test_a_failed_job_raises_its_reason(affine: Any, recipe: Make, job: Make) -> None:
    affine._failing_text = "poison"
    with pytest.raises(JobRejected, match="not finite"):
        run_locally(job(recipe("poison", steps=3)), {"affine": affine})
