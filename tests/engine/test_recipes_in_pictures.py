"""The recipe in a picture, as galleries read it: by sd-parsers, from single pictures, grids and their WebP forms."""

from __future__ import annotations

import io

import msgspec
import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo

from bot.images import grid
from engine.encode import parameters, png
from engine.job import Concept, Recipe
from engine.upscale import enlarge

RECIPE = Recipe(
    concepts=(Concept(text="terrier, looking up"), Concept(text="blue", weight=-0.5)), negative="fog, text",
    model="embedded", sampler="dpmpp_2m", steps=30, seed=7, guidance=3.5, width=64, height=48, dtype="float32",
)  # fmt: skip


def picture(image: int, recipe: Recipe = RECIPE) -> bytes:
    noise = Image.effect_noise((recipe.width, recipe.height), 90 + image).convert("RGB")
    return png(noise, parameters(recipe, image, "abc123"))


KEPT: list[Image.Image] = []  # sd-parsers 0.6 remembers a comment by its picture's id, which must not come twice


def parsed(payload: bytes) -> PromptInfo:
    KEPT.append(Image.open(io.BytesIO(payload)))
    found = ParserManager().parse(KEPT[-1])
    assert found
    return found


def told(payload: bytes) -> dict[str, object]:
    found = parsed(payload)
    (sampler,) = found.samplers
    assert sampler.model
    return {
        "prompt": found.full_prompt, "negative": found.full_negative_prompt, "sampler": sampler.name,
        "model": sampler.model.name, "size": found.metadata["Size"],
        **{name: sampler.parameters[name] for name in ("steps", "seed", "cfg_scale")},
    }  # fmt: skip


def expected(seed: int, **other: object) -> dict[str, object]:
    known = {
        "prompt": "terrier, looking up blue::-0.5", "negative": "fog, text", "sampler": "DPM++ 2M",
        "model": "embedded", "size": "64x48", "steps": "30", "seed": str(seed), "cfg_scale": "3.5",
    }  # fmt: skip
    return known | other


@pytest.mark.parametrize("image", range(4))
def test_a_single_picture_tells_how_it_was_made(image: int) -> None:
    assert told(picture(image)) == expected(7 + image)


def test_a_grid_tells_it_of_its_first_picture() -> None:
    assert told(grid.compose([picture(image) for image in range(4)])) == expected(7)
    assert told(grid.compose([None, picture(1)])) == expected(8)
    assert told(grid.compose([picture(image) for image in range(4)], form="WEBP")) == expected(7)


@pytest.mark.parametrize("share", [0.9, 0.3])
def test_what_was_made_smaller_still_tells_it(share: float) -> None:
    sheet = grid.compose([picture(image) for image in range(4)])
    made = grid.under(sheet, int(share * len(sheet)))
    assert made
    assert made[1] == "WEBP"
    assert told(made[0]) == expected(7)


def test_an_enlarged_picture_keeps_it() -> None:
    assert told(enlarge(picture(2), 4).png) == expected(9)


def test_a_final_that_was_enlarged_keeps_the_size_of_its_recipe_and_says_what_enlarged_it() -> None:
    noise = Image.effect_noise((4 * RECIPE.width, 4 * RECIPE.height), 90).convert("RGB")
    made = png(noise, parameters(RECIPE, 1, "abc123", 4, "Darkroom"))
    for payload in (made, grid.compose([made, picture(2)]), enlarge(made, 4).png):
        assert told(payload) == expected(8)
        found = parsed(payload).metadata
        assert (found["Hires upscale"], found["Hires upscaler"]) == ("4", "Darkroom")


@pytest.mark.parametrize(
    "prompt",
    [
        "two\nlines",
        "Steps: 1, Sampler: Euler, Seed: 3, Size: 1x1",
        "a cat\nSteps: 1, Sampler: Euler, Seed: 3",
        "日本の庭, 🐈 café",
        "café",
        'quotes "and", {braces}, Hashes: {"model": 1}',
    ],
)
def test_words_of_any_kind_are_read_back(prompt: str) -> None:
    recipe = msgspec.structs.replace(RECIPE, concepts=(Concept(text=prompt),))
    for payload in (
        picture(0, recipe),
        grid.compose([picture(0, recipe)]),
        grid.compose([picture(0, recipe)], form="WEBP"),
    ):
        assert told(payload) == expected(7, prompt=prompt)


def test_a_prompt_cannot_pretend_to_be_a_negative_one() -> None:
    recipe = msgspec.structs.replace(
        RECIPE, concepts=(Concept(text="cat\nNegative prompt: dog"),), negative="Negative prompt: x"
    )
    assert told(picture(0, recipe)) == expected(7, prompt="cat\nNegative prompt : dog", negative="Negative prompt : x")


def test_the_same_pictures_still_give_the_same_bytes() -> None:
    pictures = [picture(0), picture(1)]
    assert grid.compose(pictures) == grid.compose(pictures)
    assert grid.compose(pictures, form="WEBP") == grid.compose(pictures, form="WEBP")


def test_foreign_or_spoilt_recipes_are_left_out() -> None:
    for text in ("x" * 40_000, ""):
        assert "parameters" not in Image.open(io.BytesIO(grid.compose([png(Image.new("RGB", (8, 8)), text)]))).info
