"""What amendments mean: the recipe of each step, the images that develop, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.contract import (
    MAX_AMENDMENTS,
    Amendment,
    Change,
    Concept,
    DropImages,
    Interpolation,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    count_row_steps,
    count_rows,
    decode,
    encode,
    find_amendment_problem,
    find_amendments_problem,
    is_guided,
    iterate_states,
    list_final_images,
    list_lives,
    list_needed_lives,
    recipe_at_step,
    recipe_for_image,
    settle_amendments,
)

FOX = (Concept("fox"),)
TERRIER = (Concept("terrier"),)


def amend(recipe: Recipe, *amendments: tuple[int, Change]) -> Recipe:
    numbered = tuple(Amendment(number, step, change) for number, (step, change) in enumerate(amendments, 1))
    return replace(recipe, amendments=numbered)


def test_a_split_of_a_chaotic_recipe_stays_within_its_guidance() -> None:
    recipe = Recipe(
        concepts=FOX,
        model="embedded",
        sampler="ddpm",
        steps=100,
        seed=3,
        guidance=4,
        width=128,
        height=128,
        dtype="float32",
        count=2,
        chaos=1.0,
    )
    assert [recipe_for_image(recipe, image).guidance for image in range(4)] == [2.5, 7.0, 7.0, 7.0]


@pytest.fixture
def fox() -> Recipe:
    return Recipe(
        concepts=FOX,
        model="embedded",
        sampler="ddpm",
        steps=100,
        seed=3,
        guidance=4,
        width=128,
        height=128,
        dtype="float32",
    )


def test_an_amended_recipe_survives_the_wire(fox: Recipe) -> None:
    amended = amend(fox, (10, SetNegative("fog")))
    assert decode(encode(amended), Recipe) == amended


def test_each_change_holds_from_its_step_on(fox: Recipe) -> None:
    amended = amend(fox, (10, SetNegative("fog")), (10, SetGuidance(7.0, 0.1, 0.9)), (20, SetConcepts(TERRIER)))
    assert recipe_at_step(amended, 9) == fox
    at_ten = recipe_at_step(amended, 10)
    assert (at_ten.negative, at_ten.guidance, at_ten.guidance_interval, at_ten.concepts) == ("fog", 7, (0.1, 0.9), FOX)
    assert recipe_at_step(amended, 99) == replace(at_ten, concepts=TERRIER)


def test_a_fade_moves_weights_evenly_and_an_interrupted_one_goes_on_from_there(fox: Recipe) -> None:
    fade = SetConcepts(TERRIER, fade_steps=4)
    amended = amend(fox, (10, fade), (12, SetConcepts(FOX, fade_steps=2)))
    weights = [
        {concept.text: concept.weight for concept in recipe_at_step(amended, step).concepts} for step in range(9, 14)
    ]
    assert weights == [
        {"fox": 1.0},
        {"terrier": 0.25, "fox": 0.75},
        {"terrier": 0.5, "fox": 0.5},
        {"terrier": 0.25, "fox": 0.75},
        {"fox": 1.0},
    ]


def test_a_fade_is_checked_by_the_words_that_it_leaves(fox: Recipe) -> None:
    seven = tuple(Concept(f"thing {number}") for number in range(7))
    fading = amend(fox, (10, SetConcepts(seven, fade_steps=4)))
    at_its_end = Amendment(2, 13, SetConcepts((seven[0], *TERRIER), fade_steps=4))
    assert "more than 8 parts" in find_amendment_problem(fading, at_its_end)


def test_dropped_and_split_images(fox: Recipe) -> None:
    amended = amend(
        fox, (10, DropImages((0, 2, 3))), (20, SplitImage(1, (0, 3), 9)), (20, DropImages((1,))), (30, DropImages((3,)))
    )
    assert not find_amendments_problem(amended)
    assert [(life.image, life.first_step, life.drop_step) for life in list_lives(amended)] == [
        (0, 0, 10),
        (1, 0, 21),
        (2, 0, 10),
        (3, 0, 10),
        (0, 21, None),
        (3, 21, 30),
    ]
    assert [life.key for life in list_needed_lives(amended)] == [(1, 0), (0, 21)]
    assert list_final_images(amended) == (0,)
    assert settle_amendments(amended, 0).seed == 9, "a variation goes on from the new image's own noise"
    assert settle_amendments(amended, 0, 5).seed == fox.seed, "and before the split from that of the first one"


def test_the_price_is_that_of_the_rows_that_run(fox: Recipe) -> None:
    assert count_row_steps(fox) == 100 * count_rows(fox)
    two_concepts = SetConcepts((*FOX, Concept("blue", 0.5)))
    assert count_row_steps(amend(fox, (10, two_concepts))) == 10 * 8 + 90 * 12
    assert count_row_steps(amend(fox, (10, DropImages((0, 1))), (59, SplitImage(3, (0,), 1)))) == 80 + 50 * 4 + 40 * 6


@pytest.mark.parametrize(
    ("amendment", "sentence"),
    [
        (Amendment(1, 99, SetNegative("fog")), "as good as finished"),
        (Amendment(1, 10, DropImages((0, 1, 2))), ""),
        (Amendment(1, 10, SplitImage(0, (1,), 3)), "only into free places"),
        (Amendment(1, 10, SetGuidance(3.0, 0.9, 0.1)), "before it starts"),
        (Amendment(1, 10, SetConcepts((Concept("a", 0.0),))), "weight other than 0"),
        (Amendment(1, 10, SetConcepts((Concept("a", -1.0), *FOX), mixed=True)), "above 0"),
        (Amendment(1, 10, SetConcepts(tuple(map(Concept, "abcdefgh")), fade_steps=9)), "more than 8 parts"),
    ],
)
def test_what_cannot_be_has_a_sentence(fox: Recipe, amendment: Amendment, sentence: str) -> None:
    problem = find_amendment_problem(fox, amendment)
    assert sentence in problem if sentence else not problem


def test_walks_and_candidates_and_a_sixty_fifth_change(fox: Recipe) -> None:
    walk = replace(fox, interpolation=Interpolation(end_prompt="dog", first=0, total_frames=4))
    assert "walk" in find_amendment_problem(walk, Amendment(1, 10, SetNegative("fog")))
    best = replace(fox, candidate_count=8)
    assert "candidates" in find_amendment_problem(best, Amendment(1, 10, DropImages((0,))))
    assert not find_amendment_problem(best, Amendment(1, 10, SetNegative("fog")))
    full = amend(fox, *((10, SetNegative("fog")) for _ in range(MAX_AMENDMENTS)))
    assert "64 times" in find_amendment_problem(full, Amendment(65, 10, SetNegative("fog")))
    backwards = replace(fox, amendments=(Amendment(1, 10, SetNegative("a")), Amendment(2, 9, SetNegative("b"))))
    assert "before an earlier one" in find_amendments_problem(backwards)


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.lists(st.sampled_from("abc"), min_size=1, unique=True), st.integers(0, 12)),
        max_size=5,
    )
)
def test_a_step_looked_up_alone_is_that_of_the_whole_run(script: Any) -> None:
    recipe = Recipe(
        concepts=FOX, model="m", sampler="ddim", steps=40, seed=1, guidance=3, width=64, height=64, dtype="float32"
    )
    changes = [
        (step, SetConcepts(tuple(map(Concept, words)), fade_steps=fade))
        for step, words, fade in sorted(script, key=lambda each: each[0])
    ]
    amended = amend(recipe, *changes)
    rows = 0
    for step, state in iterate_states(amended, 0, 40):
        assert recipe_at_step(amended, step) == state
        assert all(-10 <= concept.weight <= 10 for concept in state.concepts)
        rows += count_rows(state, is_guided(state, step))
    assert count_row_steps(amended) == rows, "the price is that of all steps"
