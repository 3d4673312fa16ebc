"""*Compare* pairs a remix with the picture of its parent that has the same noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from bot.discord.components.picture_actions import has_same_noise
from bot.domain.dto import JobView, PictureRef
from shared.stored_jobs import RECIPE

PICTURES = tuple(PictureRef(index, "0" * 64, 64, 64) for index in range(2))
PARENT = JobView(
    id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
    state="finished",
    prompt="a lamp",
    task=RECIPE,
    member_id="discord:1",
    member_name="Alice",
    guild="discord:2",
    created=0.0,
    started=0.0,
    finished=1.0,
    seconds=1.0,
    ms_per_step=1.0,
    jobs_ahead=None,
    eta=None,
    reason="",
    step=40,
    total_steps=40,
    ladder_images=(),
    parent_image=None,
    action="imagine",
    pictures=PICTURES,
    cost=1.0,
)


def make_view(**changes: Any) -> JobView:
    return replace(PARENT, action="remix", task=msgspec.structs.replace(RECIPE, count=2, **changes))


def test_only_a_remix_with_the_same_seeds_has_the_noise_of_its_parent() -> None:
    chosen = make_view(candidate_count=4, chosen_candidates=(3, 0))
    assert has_same_noise(PARENT, make_view(), 1)
    assert has_same_noise(chosen, chosen, 1)
    assert not has_same_noise(PARENT, make_view(seed=8), 1)
    assert not has_same_noise(chosen, make_view(candidate_count=4, chosen_candidates=(3, 1)), 1)
    assert not has_same_noise(PARENT, make_view(), 2), "the parent has no such picture"
    assert not has_same_noise(PARENT, replace(make_view(), action="vary"), 1)
