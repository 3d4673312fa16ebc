"""Styles: a prompt gets those that suit its subject; --raw declines; what comes of a picture keeps its style."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from bot.jobs.beginnings import BranchEdit, branch_recipe, remix_base, single_image
from bot.jobs.model_catalog import SHIPPED_MODEL
from bot.jobs.recipe import can_interpolate, interpolate_images, remix_recipe, reroll_recipe, vary_recipe
from bot.prompt import build_recipe, parse
from bot.prompt.parsed_prompt import choose_styles
from bot.prompt.part_flags import RequestedLora, RequestedReference
from engine.contract import (
    TURBO_LORA,
    Amendment,
    Concept,
    DropImages,
    Lora,
    Recipe,
    SetConcepts,
    SplitImage,
    recipe_for_image,
)
from engine.prompt.style_guide import StyleGuide

GUIDE = StyleGuide(
    "3d render",
    {"soft shading": frozenset({"fox", "dog face", "ice cream"}), "flat design": frozenset({"fox", "owl"})},
    {"terrier": "dog face"},
)
STYLES = ("3d render", "soft shading", "3d render", "flat design")
SECOND_STYLE = STYLES[(7 + 1) % len(STYLES)]  # of image 1 with seed 7


def build(text: str, **options: object) -> Recipe:
    (parsed_prompt,) = parse(text, None, options=options).prompts
    return build_recipe(parsed_prompt, SHIPPED_MODEL, 7, style_guide=GUIDE)


def texts_of(recipe: Recipe, image: int = 0) -> list[str]:
    return [concept.text for concept in recipe_for_image(recipe, image).concepts]


def test_every_other_picture_has_the_main_style_and_the_rest_those_that_suit_the_subject() -> None:
    assert [texts_of(build("fox"), image)[0] for image in range(4)] == [
        "fox, flat design",
        "fox, 3d render",
        "fox, soft shading",
        "fox, 3d render",
    ]
    assert build("a terrier, looking up").styles == ("3d render", "soft shading")
    assert build("The cute OWL.").styles == ("3d render", "flat design")


@pytest.mark.parametrize(
    "text",
    [
        "fox, flat design",
        "Fox, 3D Render",
        "fox, a sketch",
        "fox, Pixel-Art",
        "fox, in oil",
        "fox, soft-shading",
        "fox, hyperrealistic",
        "fox, photorealism",
        "fox, in pastels",
        "fox, black & white",
        "fox, greyscale",
        "fox --raw",
        "fox --walk owl",
        "fox:: owl",
        "lamp",
        "red fox",
        "fox with a hat",
        "fox, " + "very " * 16 + "red",
        "fox, wearing sunglasses, headphones, moustache, on a skateboard, blue background",
        "fox --no 3d render",
    ],
)
def test_a_prompt_with_a_style_or_another_subject_gets_none(text: str) -> None:
    assert build(text).styles == ()


@pytest.mark.parametrize("text", ["ice cream, soft", "ice cream, a flat tyre", "ice cream, a drawer"])
def test_words_that_only_sound_like_a_style_are_none(text: str) -> None:
    assert build(text).styles == ("3d render", "soft shading")


def test_options_decline_styles_and_wordless_prompts_and_other_models_have_none() -> None:
    assert build("fox", raw=True).styles == ()
    (wordless,) = parse("", None, allow_empty=True).prompts
    assert build_recipe(wordless, SHIPPED_MODEL, 7, style_guide=GUIDE).styles == ()
    assert build_recipe(parse("fox", None).prompts[0], SHIPPED_MODEL, 7).styles == ()


def test_a_lora_or_a_reference_says_what_a_picture_looks_like() -> None:
    plain = parse("fox", None).prompts[0]
    assert choose_styles(plain, GUIDE) == STYLES
    assert choose_styles(replace(plain, loras=(RequestedLora(TURBO_LORA, 1.0),)), GUIDE) == STYLES
    assert choose_styles(replace(plain, loras=(RequestedLora("mine", 0.8),)), GUIDE) == ()
    assert choose_styles(replace(plain, references=(RequestedReference("mine", 0.8),)), GUIDE) == ()


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
    raw = branch_recipe(alone, "a" * 64, 40, BranchEdit("fox", None, {"raw": True}), SHIPPED_MODEL)
    assert texts_of(raw) == ["fox"]


def test_a_split_and_words_that_were_said_keep_the_style_in_what_comes_of_them() -> None:
    said = Amendment(1, 10, SetConcepts((Concept("fox"), Concept("blue"))))
    drop = Amendment(2, 15, DropImages((0,)))
    split = Amendment(3, 20, SplitImage(1, (0,), 98))
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
    for declining in ("owl --raw", "owl, 3d render", "owl:: snow", "owl --no soft shading"):
        assert remix_recipe(recipe, parse(declining, None).prompts[0], SHIPPED_MODEL).styles == ()
    with_lora = msgspec.structs.replace(SHIPPED_MODEL, loras=(Lora("mine", 0.8, "abc"),))
    assert remix_recipe(recipe, parse("owl --lora mine", None).prompts[0], with_lora).styles == ()


def test_a_film_between_the_pictures_goes_from_style_to_style() -> None:
    assert can_interpolate(build("fox"))
    assert [texts_of(part, 0) for part in interpolate_images(build("fox"))][:2] == [
        [f"fox, {STYLES[7 % 4]}"],
        [f"fox, {SECOND_STYLE}"],
    ]
    several = msgspec.structs.replace(build("fox"), concepts=(Concept("fox"), Concept("owl")))
    assert not can_interpolate(several), "several concepts are not joined across styles"
    assert can_interpolate(build("fox:: owl"))
