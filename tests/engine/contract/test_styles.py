"""Styles: the pictures of a recipe take them in turn, and a picture keeps its own whatever becomes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.contract import (
    Amendment,
    Concept,
    DropImages,
    Interpolation,
    ModelProfile,
    Recipe,
    SetConcepts,
    SplitImage,
    decode,
    encode,
    estimate_cost,
    find_life,
    keep_style,
    recipe_at_step,
    recipe_for_image,
    settle_amendments,
)
from engine.contract.fields import MAX_TEXT

STYLES = ("3d render", "soft shading", "flat design")
FOX = Recipe(
    concepts=(Concept("fox"),),
    model="embedded",
    sampler="ddpm",
    steps=100,
    seed=3,
    guidance=4,
    width=64,
    height=64,
    dtype="float32",
    styles=STYLES,
)


def list_texts(recipe: Recipe, image: int) -> list[str]:
    return [concept.text for concept in recipe_for_image(recipe, image).concepts]


def test_neighbouring_images_take_the_styles_in_turn() -> None:
    texts = [list_texts(FOX, image) for image in range(4)]
    assert texts == [["fox, 3d render"], ["fox, soft shading"], ["fox, flat design"], ["fox, 3d render"]]
    assert recipe_for_image(FOX, 1).styles == ()
    assert [list_texts(replace(FOX, styles=()), image) for image in range(4)] == [["fox"]] * 4


@given(st.integers(0, 2**32 - 8), st.integers(0, 3))
def test_the_style_belongs_to_the_noise(seed: int, image: int) -> None:
    """Image i of a seed is image 0 of seed + i: the same noise has the same style, in whatever batch."""
    assert list_texts(replace(FOX, seed=seed), image) == list_texts(replace(FOX, seed=seed + image), 0)


def test_only_what_is_drawn_gets_a_style() -> None:
    recipe = replace(FOX, concepts=(Concept("fox"), Concept("fog", -0.5), Concept("")), negative="text")
    image_recipe = recipe_for_image(recipe, 0)
    assert [concept.text for concept in image_recipe.concepts] == ["fox, 3d render", "fog", ""]
    assert image_recipe.negative == "text"


def test_a_text_that_a_style_would_make_too_long_has_none() -> None:
    long_text = "f" * (MAX_TEXT - 4)
    assert list_texts(replace(FOX, concepts=(Concept(long_text),)), 0) == [long_text]
    walk = replace(FOX, concepts=(Concept(long_text),), interpolation=Interpolation(None, 0, 5, (3, 4)), count=4)
    frame = recipe_for_image(walk, 2)
    assert decode(encode(frame), Recipe) == frame


def test_words_are_encoded_once_for_each_style() -> None:
    model = ModelProfile(
        name="embedded",
        revision="1",
        dtype="float32",
        size=64,
        multiple=8,
        max_pixels=128 * 128,
        tokens=24,
        steps=100,
        sampler="ddpm",
        samplers=("ddpm",),
        guidance=4.0,
        row_ms=4.0,
        encode_ms=1000.0,
        decode_ms=60.0,
    )
    added = estimate_cost(FOX, model) - estimate_cost(replace(FOX, styles=()), model)
    assert added == pytest.approx(len(STYLES) - 1)
    twice = replace(FOX, styles=(STYLES[0], STYLES[1], STYLES[0]))
    assert estimate_cost(FOX, model) - estimate_cost(twice, model) == pytest.approx(1.0), "one style is there twice"


def test_a_kept_style_stays_with_other_noise() -> None:
    kept = keep_style(FOX, 2)
    assert {text for seed in range(9) for text in list_texts(replace(kept, seed=seed), 0)} == {"fox, flat design"}
    assert keep_style(replace(FOX, styles=()), 2).styles == ()


def test_a_split_keeps_the_style_of_the_image_that_it_left() -> None:
    """Also a split of a split, and after the first image was dropped: 4 % of a fox do not turn into another style."""
    changes = (DropImages((0, 2)), SplitImage(1, (2,), 98), SplitImage(2, (0,), 40))
    steered = replace(FOX, amendments=tuple(Amendment(n, 10 * n, change) for n, change in enumerate(changes, 1)))
    for image in (0, 1, 2):
        life = find_life(steered, image)
        assert life is not None
        assert list_texts(life.give_noise(recipe_at_step(steered, 99)), image) == ["fox, soft shading"]
        assert list_texts(settle_amendments(steered, image), image) == ["fox, soft shading"]


def test_words_that_are_said_later_get_the_style_too() -> None:
    change = SetConcepts((Concept("fox"), Concept("blue", 0.5)))
    steered = replace(FOX, amendments=(Amendment(1, 40, change),))
    assert list_texts(recipe_at_step(steered, 40), 1) == ["fox, soft shading", "blue, soft shading"]


@pytest.mark.parametrize("said", ["pencil sketch", "watercolours", "8-bit", "stained glass"])
def test_words_that_name_a_style_leave_no_other(said: str) -> None:
    """Whoever says *pencil sketch* beside a developing fox wants no 3D render of it."""
    steered = replace(FOX, amendments=(Amendment(1, 40, SetConcepts((Concept("fox"), Concept(said)))),))
    assert list_texts(recipe_at_step(steered, 39), 1) == ["fox, soft shading"]
    assert list_texts(recipe_at_step(steered, 40), 1) == ["fox", said]
    away = replace(FOX, concepts=(Concept("fox"), Concept(said, -0.5)))
    assert list_texts(away, 1) == ["fox", said]
    assert list_texts(replace(FOX, negative=said), 1) == ["fox"]


@pytest.mark.parametrize("text", ["fox.", "fox,", "fox ;"])
def test_a_style_follows_one_comma(text: str) -> None:
    assert list_texts(replace(FOX, concepts=(Concept(text),)), 0) == ["fox, 3d render"]


def test_a_walk_between_two_prompts_has_one_style() -> None:
    walk = replace(FOX, interpolation=Interpolation("owl", 0, 4))
    assert [list_texts(walk, image) for image in (0, 1, 3)] == [
        ["fox, 3d render"],
        ["fox, 3d render", "owl, 3d render"],
        ["owl, 3d render"],
    ]


def test_a_walk_between_two_pictures_goes_from_style_to_style() -> None:
    walk = replace(FOX, interpolation=Interpolation(None, 0, 5, (3, 4)), count=4)
    middle = recipe_for_image(walk, 2)
    assert [(concept.text, concept.weight) for concept in middle.concepts] == [
        ("fox, 3d render", 0.5),
        ("fox, soft shading", 0.5),
    ]
    assert (middle.mixed, middle.seed, middle.lineage[0].seed) == (True, 4, 3)
    assert list_texts(walk, 0) == ["fox, 3d render"]
    same = replace(walk, interpolation=Interpolation(None, 0, 5, (3, 6)))
    assert list_texts(same, 2) == ["fox, 3d render"], "both ends have one style"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_chaos_and_styles_hold_together(count: int) -> None:
    recipe = replace(FOX, chaos=0.5, count=count)
    plain = replace(recipe, styles=())
    for image in range(count):
        expected = recipe_for_image(plain, image).guidance
        assert recipe_for_image(recipe, image).guidance == expected
        assert list_texts(recipe, image) == [f"fox, {STYLES[image % 3]}"]
