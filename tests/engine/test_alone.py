"""`darkroom imagine` without a running bot: one job on the embedded model, from recipe to PNG."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from engine.alone import develop
from engine.families.stable_diffusion import StableDiffusion
from engine.job import Frame, Ladder, decode
from engine.lane import Lane
from engine.unfit import Unfit

Make = Callable[..., Any]


def test_a_job_yields_pictures_previews_and_ladders(embedded: StableDiffusion, recipe: Make, job: Make) -> None:
    one = job(recipe("a red cat", model="embedded", guidance=3.5, width=64, height=64, steps=8, count=2))
    frames: list[Frame] = []
    first = develop(one, {"embedded": embedded}, on_frame=frames.append)
    assert first.frames == len(frames) > 0
    assert {frame.job for frame in frames} == {one.id}
    assert first.seconds > 0
    assert first.ms_per_step > 0
    for png in first.pictures:
        with Image.open(BytesIO(png)) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert [decode(ladder, Ladder).image for ladder in first.ladders] == [0, 1]
    again = develop(one, {"embedded": embedded})
    assert again.pictures == first.pictures
    assert again.ladders == first.ladders


def test_a_job_without_a_ladder_writes_none(affine: Any, recipe: Make, job: Make) -> None:
    result = develop(job(recipe(steps=3), ladder=False), {"affine": affine})
    assert (len(result.pictures), result.ladders, result.frames) == (1, [], 0)


def test_a_failed_preview_does_not_fail_the_job(
    affine: Any, recipe: Make, job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Frame:
        raise RuntimeError("no preview")

    monkeypatch.setattr(Lane, "_frame", fail)
    frames: list[Frame] = []
    result = develop(job(recipe(steps=200), ladder=False), {"affine": affine}, on_frame=frames.append)
    assert (len(result.pictures), result.frames, frames) == (1, 0, [])


def test_a_job_for_an_unknown_model_is_refused(affine: Any, recipe: Make, job: Make) -> None:
    with pytest.raises(Unfit, match="no model called"):
        develop(job(recipe(model="sdxl")), {"affine": affine})


def test_a_failed_job_raises_its_reason(affine: Any, recipe: Make, job: Make) -> None:
    affine._spoilt = "poison"
    with pytest.raises(Unfit, match="not finite"):
        develop(job(recipe("poison", steps=3)), {"affine": affine})
