"""Which changes a steering request means: words, weights, images, guidance, on top of all that was asked for before."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bot.domain.errors import UserError
from bot.domain.steering import SteeringRequest
from bot.jobs.requested_changes import work_out_changes
from engine.contract import (
    MAX_AMENDMENTS,
    Concept,
    DropImages,
    Interpolation,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    count_row_steps,
    find_amendments_problem,
    list_final_images,
    settle_fades,
)

RECIPE = Recipe(
    concepts=(Concept("fox"),),
    model="embedded",
    sampler="ddim",
    steps=40,
    seed=7,
    guidance=3.0,
    width=64,
    height=64,
    dtype="float32",
    count=2,
)
FOX_AND_TERRIER = replace(RECIPE, concepts=(Concept("fox", 0.4), Concept("terrier", 0.6)))


def work_out(recipe: Recipe = RECIPE, step: int = 5, **request: Any) -> list[tuple[object, str]]:
    return [(each.change, each.text) for each in work_out_changes(SteeringRequest(**request), recipe, step, 9)]


def test_the_parts_of_a_request_come_as_images_words_negative_guidance() -> None:
    assert work_out(guidance=6, negative="blur", say="blue", drop=(0,), split=(1, 3)) == [
        (DropImages((0,)), "drops image 1"),
        (SplitImage(1, (2, 3), 9), "splits image 2 into 3"),
        (SetConcepts((Concept("fox, blue"),)), "fox, blue"),
        (SetNegative("blur"), "without blur"),
        (SetGuidance(6), "guidance 6"),
    ]


def test_words_join_the_first_part_or_become_one_of_their_own() -> None:
    (change,) = work_out(say="terrier", say_weight=1.5, fade_steps=20)
    assert change == (SetConcepts(FOX_AND_TERRIER.concepts, fade_steps=20), "fox 0.4, terrier 0.6 over 20 steps")
    assert work_out(say="terrier::1.5")[0][1] == "fox 0.4, terrier 0.6"
    assert work_out(FOX_AND_TERRIER, say="blue")[0][1] == "fox, blue 0.4, terrier 0.6"
    assert work_out(FOX_AND_TERRIER, say="terrier", say_weight=0.4)[0][1] == "fox 0.5, terrier 0.5"


def test_weights_are_relative_and_a_weight_of_0_removes_a_part() -> None:
    assert work_out(FOX_AND_TERRIER, weights={0: 0.6})[0][1] == "fox 0.5, terrier 0.5"
    assert work_out(FOX_AND_TERRIER, weights={0: 0})[0][0] == SetConcepts((Concept("terrier"),))
    with pytest.raises(UserError, match="no part 3: it has 2"):
        work_out(FOX_AND_TERRIER, weights={2: 1.0})
    with pytest.raises(UserError, match="must add up to more than 0"):
        work_out(weights={0: -1.0})


def test_a_new_prompt_has_words_weights_and_no_other_flags() -> None:
    assert work_out(prompt="a cat::1 a hat::3 --no blur") == [
        (SetConcepts((Concept("a cat", 0.25), Concept("a hat", 0.75))), "a cat 0.25, a hat 0.75"),
        (SetNegative("blur"), "without blur"),
    ]
    for prompt, reason in (("a cat --ar 3:2", "leave out --ar"), ("a {cat,dog}", "braces"), ("", "prompt is empty")):
        with pytest.raises(UserError, match=reason):
            work_out(prompt=prompt)


def test_what_changes_nothing_or_cannot_be_is_refused_with_a_sentence() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "Nothing in this changes"),
        ({"guidance": 3.0}, "Nothing in this changes"),
        ({"keep": (0, 1)}, "Nothing"),
        ({"drop": (0, 1)}, "One image has to stay"),
        ({"keep": (3,)}, "Image 4 is not developing"),
        ({"split": (0, 4)}, "2 places are left"),
        ({"split": (0, 1)}, "into 2 to 4"),
        ({"guidance": 31}, "1 to 30"),
        ({"guidance": float("nan")}, "1 to 30"),
        ({"interval": (0.8, 0.2)}, "cannot stop before it starts"),
        ({"say": "x" * 2000}, "2000 characters"),
        ({"say": "a", "fade_steps": 2000}, "A fade takes"),
        ({"say": "a", "say_weight": float("inf")}, "No worker would take"),
        ({"say": "blue --count 4"}, "no flags: leave out --count"),
        ({"negative": "fog --relax"}, "leave out --relax"),
        ({"say": "blue <lora:x:1>", "say_weight": 1.0}, "leave out --lora"),
        ({"say": "a --nosuch"}, "nosuch"),
    ]
    for request, reason in refused:
        with pytest.raises(UserError, match=reason):
            work_out(**request)
    with pytest.raises(UserError, match="as good as finished"):
        work_out(step=39, say="blue")
    with pytest.raises(UserError, match="a walk cannot be steered"):
        work_out(replace(RECIPE, interpolation=Interpolation("cat", 0, 12)), say="blue")
    with pytest.raises(UserError, match="chosen among candidates"):
        work_out(replace(RECIPE, candidate_count=4), keep=(0,))


def test_a_split_takes_places_that_never_had_an_image_first() -> None:
    dropped = work_out_changes(SteeringRequest(drop=(0,)), RECIPE, 3, 9)[-1].recipe
    assert work_out(dropped, split=(1, 2))[0][0] == SplitImage(1, (2,), 9)
    assert work_out(dropped, split=(1, 4))[0][0] == SplitImage(1, (0, 2, 3), 9)


REQUESTS = st.builds(
    SteeringRequest,
    say=st.sampled_from(["", "blue", "terrier", "a::2 b::0.5"]),
    say_weight=st.none() | st.floats(-2, 5),
    prompt=st.none() | st.sampled_from(["cat", "cat::2 dog::1 --no blur"]),
    weights=st.dictionaries(st.integers(0, 3), st.floats(-1, 5), max_size=2),
    negative=st.none() | st.sampled_from(["", "blur"]),
    guidance=st.none() | st.floats(0, 31),
    interval=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
    keep=st.just(()) | st.tuples(st.integers(0, 3)),
    drop=st.just(()) | st.tuples(st.integers(0, 3)),
    split=st.none() | st.tuples(st.integers(0, 3), st.integers(1, 5)),
    fade_steps=st.integers(0, 50),
)


@settings(max_examples=25)
@given(requests=st.lists(st.tuples(REQUESTS, st.integers(0, 3)), max_size=6))
def test_any_requests_leave_a_recipe_that_workers_take(requests: list[tuple[SteeringRequest, int]]) -> None:
    recipe = RECIPE
    step = 0
    for request, steps in requests:
        step += steps
        with suppress(UserError):
            recipe = work_out_changes(request, recipe, step, 9)[-1].recipe
    assert find_amendments_problem(recipe) == ""
    assert len(recipe.amendments) <= MAX_AMENDMENTS
    assert list_final_images(recipe)
    settled = settle_fades(recipe)
    assert sum(concept.weight for concept in settled.concepts if concept.weight > 0) == pytest.approx(1)
    assert 1 <= settled.guidance <= 30
    assert settled.negative in ("", "blur")
    assert count_row_steps(recipe) > 0
