"""A finished job's view, for tests that need no real job."""

from __future__ import annotations

from dataclasses import replace

from bot.domain.dto import JobView, PictureRef
from engine.contract import Concept, Recipe

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
PARENT = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
NOW = 1_800_000_000.0


def make_recipe(count: int = 4) -> Recipe:
    return Recipe(
        concepts=(Concept("terrier"),),
        model="embedded",
        sampler="ddpm",
        steps=1000,
        seed=7,
        guidance=3.0,
        width=64,
        height=64,
        count=count,
        dtype="float32",
    )


def make_view(**changes: object) -> JobView:
    count = changes.pop("count", 4)
    assert isinstance(count, int)
    view = JobView(
        id=JOB,
        state="finished",
        prompt="terrier, looking up",
        task=make_recipe(count),
        member_id="discord:1",
        member_name="Alice",
        guild="discord:2",
        created=NOW,
        started=NOW,
        finished=NOW,
        seconds=12.3,
        ms_per_step=8.5,
        jobs_ahead=None,
        eta=None,
        reason="",
        step=1000,
        total_steps=1000,
        ladder_images=(),
        parent_image=None,
        action="imagine",
        pictures=tuple(PictureRef(index, "0" * 64, 64, 64) for index in range(count)),
    )
    return replace(view, **changes)
