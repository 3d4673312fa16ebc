"""Styles: a prompt that names none gets those of its model; --raw declines; what comes of a picture keeps its style."""

from __future__ import annotations

import msgspec
import pytest

from bot.prompt import build_recipe, parse
from bot.prompt.style_words import names_style
from bot.queue.model_catalog import SHIPPED_MODEL
from bot.services.jobs.derived_recipes import (
    can_interpolate,
    interpolate_images,
    interpolation_recipes,
    remix_recipe,
    reroll_recipe,
    vary_recipe,
)
from bot.services.jobs.recipe_init import BranchEdit, branch_recipe, remix_base, single_image
from engine.contract import Amendment, Concept, DropImages, Recipe, SetConcepts, SplitImage, recipe_for_image

STYLES = SHIPPED_MODEL.styles
SECOND_STYLE = STYLES[(7 + 1) % len(STYLES)]  # of image 1 with seed 7


def build(text: str, **options: object) -> Recipe:
    (parsed_prompt,) = parse(text, None, options=options).prompts
    return build_recipe(parsed_prompt, SHIPPED_MODEL, 7)


def texts_of(recipe: Recipe, image: int = 0) -> list[str]:
    return [concept.text for concept in recipe_for_image(recipe, image).concepts]


def test_the_four_pictures_of_a_prompt_have_all_styles() -> None:
    texts = {text for image in range(4) for text in texts_of(build("fox"), image)}
    assert texts == {f"fox, {style}" for style in STYLES}


@pytest.mark.parametrize(
    "text",
    ["fox, flat design", "Fox, 3D Render", "a sketch of a fox", "pixel art fox", "fox:: watercolour", "fox --raw",
     "fox --walk an owl in oil"],
)  # fmt: skip
def test_a_prompt_that_names_a_style_gets_no_other(text: str) -> None:
    assert build(text).styles == ()


@pytest.mark.parametrize("text", ["fox", "soft ice cream", "a flat tyre", "a drawer", "an oily fish", "fox --best"])
def test_other_prompts_get_the_styles_of_their_model(text: str) -> None:
    assert build(text).styles == STYLES


def test_options_decline_styles_and_wordless_prompts_have_none() -> None:
    assert build("fox", raw=True).styles == ()
    (wordless,) = parse("", None, allow_empty=True).prompts
    assert build_recipe(wordless, SHIPPED_MODEL, 7).styles == ()
    assert not names_style("", STYLES)
    other = msgspec.structs.replace(SHIPPED_MODEL, styles=())
    assert build_recipe(parse("fox", None).prompts[0], other, 7).styles == ()


def test_a_style_is_named_in_any_case_and_only_as_a_whole() -> None:
    assert names_style("FLAT DESIGN fox", ("flat design",))
    assert not names_style("flat fox", ("flat design",))


def test_what_comes_of_one_picture_keeps_its_style() -> None:
    recipe = build("fox")
    variation = vary_recipe(recipe, 1, 0.2, 1000)
    assert {text for image in range(4) for text in texts_of(variation, image)} == {f"fox, {SECOND_STYLE}"}
    alone = single_image(recipe, 1)
    assert (texts_of(alone), alone.concepts) == ([f"fox, {SECOND_STYLE}"], recipe.concepts)
    assert texts_of(single_image(alone, 0)) == texts_of(alone)
    branch = branch_recipe(alone, "a" * 64, 40, BranchEdit("fox", "owl", {}), SHIPPED_MODEL)
    assert texts_of(branch) == [f"owl, {SECOND_STYLE}"]
    styled = branch_recipe(alone, "a" * 64, 40, BranchEdit("fox", "owl, flat design", {}), SHIPPED_MODEL)
    assert texts_of(styled) == ["owl, flat design"]


def test_a_split_and_words_that_were_said_keep_the_style_in_what_comes_of_them() -> None:
    said = Amendment(1, 10, SetConcepts((Concept("fox"), Concept("blue"))))
    drop, split = Amendment(2, 15, DropImages((0,))), Amendment(3, 20, SplitImage(1, (0,), 98))
    steered = msgspec.structs.replace(build("fox"), amendments=(said, drop, split))
    expected = [f"fox, {SECOND_STYLE}", f"blue, {SECOND_STYLE}"]
    assert texts_of(remix_base(steered, 0)) == expected
    alone = single_image(msgspec.structs.replace(steered, amendments=(said,)), 1)
    assert alone.styles == (SECOND_STYLE,)
    assert alone.amendments == (said,)


def test_other_noise_takes_the_styles_anew_and_a_remix_keeps_them() -> None:
    recipe = build("fox")
    assert reroll_recipe(recipe, 99).styles == STYLES
    assert remix_recipe(recipe, parse("owl", None).prompts[0], SHIPPED_MODEL).styles == STYLES
    assert remix_recipe(recipe, parse("owl --raw", None).prompts[0], SHIPPED_MODEL).styles == ()


def test_a_walk_has_one_style_and_pictures_of_several_concepts_are_not_joined_across_styles() -> None:
    walk = interpolation_recipes(build("fox"), "owl", 8)
    ends = texts_of(walk[0], 0), texts_of(walk[-1], 3)
    style = STYLES[7 % len(STYLES)]
    assert ends == ([f"fox, {style}"], [f"owl, {style}"])
    assert can_interpolate(build("fox"))
    assert [texts_of(part, 0) for part in interpolate_images(build("fox"))][:2] == [
        [f"fox, {style}"], [f"fox, {SECOND_STYLE}"],
    ]  # fmt: skip
    assert not can_interpolate(build("fox:: owl"))
    assert can_interpolate(build("fox:: owl --raw"))
