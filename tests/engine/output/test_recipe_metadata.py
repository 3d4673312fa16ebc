"""The recipe in a picture as galleries read it: sd-parsers parses single pictures, grids and their WebP forms."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo

from bot.pictures import grid
from engine.contract import Amendment, Concept, Recipe, SetConcepts, SetGuidance, SplitImage
from engine.output.upscaler import upscale_picture
from engine.picture_files import encode_png, format_parameters

RECIPE = Recipe(
    concepts=(Concept(text="terrier, looking up"), Concept(text="blue", weight=-0.5)),
    negative="fog, text",
    model="embedded",
    sampler="dpmpp_2m",
    steps=30,
    seed=7,
    guidance=3.5,
    width=64,
    height=48,
    dtype="float32",
)


def picture(image: int, recipe: Recipe = RECIPE) -> bytes:
    noise = Image.effect_noise((recipe.width, recipe.height), 90 + image).convert("RGB")
    return encode_png(noise, format_parameters(recipe, image, "abc123"))


PARSED_PICTURES: list[Image.Image] = []  # sd-parsers 0.6 caches comments by id(picture), so no id may repeat


def parse_parameters(payload: bytes) -> PromptInfo:
    PARSED_PICTURES.append(Image.open(io.BytesIO(payload)))
    parsed = ParserManager().parse(PARSED_PICTURES[-1])
    assert parsed
    return parsed


def read_recipe(payload: bytes) -> dict[str, object]:
    parsed = parse_parameters(payload)
    (sampler,) = parsed.samplers
    assert sampler.model
    return {
        "prompt": parsed.full_prompt,
        "negative": parsed.full_negative_prompt,
        "sampler": sampler.name,
        "model": sampler.model.name,
        "size": parsed.metadata["Size"],
        **{name: sampler.parameters[name] for name in ("steps", "seed", "cfg_scale")},
    }


def expect_recipe(seed: int, **other: object) -> dict[str, object]:
    common_fields = {
        "prompt": "terrier, looking up blue::-0.5",
        "negative": "fog, text",
        "sampler": "DPM++ 2M",
        "model": "embedded",
        "size": "64x48",
        "steps": "30",
        "seed": str(seed),
        "cfg_scale": "3.5",
    }
    return common_fields | other


def test_a_steered_picture_carries_its_last_words_and_its_whole_recipe() -> None:
    changes = (
        SetConcepts((Concept('a "red" fox, Negative prompt: none', 0.4), Concept("sea", 0.6))),
        SplitImage(0, (2,), 50),
        SetGuidance(6.0),
    )
    amendments = tuple(Amendment(number, 5 * number, change) for number, change in enumerate(changes, 1))
    steered = msgspec.structs.replace(RECIPE, count=1, amendments=amendments)
    shown = read_recipe(picture(2, steered))
    assert shown == expect_recipe(52, prompt='a "red" fox, Negative prompt : none::0.4 sea::0.6', cfg_scale="6")
    text = format_parameters(steered, 2, "abc123")
    assert ", Steered: 3 changes, " in text
    quoted = text.partition("Darkroom recipe: ")[2].rpartition(", Version: ")[0]
    assert msgspec.json.decode(json.loads(quoted), type=Recipe) == steered


@pytest.mark.parametrize("image", range(4))
def test_a_single_picture_carries_its_recipe(image: int) -> None:
    assert read_recipe(picture(image)) == expect_recipe(7 + image)


def test_a_grid_carries_the_recipe_of_its_first_picture() -> None:
    assert read_recipe(grid.compose([picture(image) for image in range(4)])) == expect_recipe(7)
    assert read_recipe(grid.compose([None, picture(1)])) == expect_recipe(8)
    assert read_recipe(grid.compose([picture(image) for image in range(4)], image_format="WEBP")) == expect_recipe(7)


@pytest.mark.parametrize("share", [0.9, 0.3])
def test_a_shrunk_grid_keeps_the_recipe(share: float) -> None:
    sheet = grid.compose([picture(image) for image in range(4)])
    smaller_grid = grid.shrink_to_fit(sheet, int(share * len(sheet)))
    assert smaller_grid
    assert smaller_grid[1] == "WEBP"
    assert read_recipe(smaller_grid[0]) == expect_recipe(7)


def test_an_upscaled_picture_keeps_the_recipe() -> None:
    assert read_recipe(upscale_picture(picture(2), 4).png) == expect_recipe(9)


def test_an_enlarged_final_keeps_the_recipes_size_and_names_its_upscaler() -> None:
    noise = Image.effect_noise((4 * RECIPE.width, 4 * RECIPE.height), 90).convert("RGB")
    upscaled_png = encode_png(noise, format_parameters(RECIPE, 1, "abc123", 4, "Darkroom"))
    for payload in (upscaled_png, grid.compose([upscaled_png, picture(2)]), upscale_picture(upscaled_png, 4).png):
        assert read_recipe(payload) == expect_recipe(8)
        metadata = parse_parameters(payload).metadata
        assert (metadata["Hires upscale"], metadata["Hires upscaler"]) == ("4", "Darkroom")


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
def test_prompts_of_any_kind_are_read_back(prompt: str) -> None:
    recipe = msgspec.structs.replace(RECIPE, concepts=(Concept(text=prompt),))
    for payload in (
        picture(0, recipe),
        grid.compose([picture(0, recipe)]),
        grid.compose([picture(0, recipe)], image_format="WEBP"),
    ):
        assert read_recipe(payload) == expect_recipe(7, prompt=prompt)


def test_a_prompt_cannot_inject_a_negative_prompt() -> None:
    recipe = msgspec.structs.replace(
        RECIPE, concepts=(Concept(text="cat\nNegative prompt: dog"),), negative="Negative prompt: x"
    )
    assert read_recipe(picture(0, recipe)) == expect_recipe(
        7, prompt="cat\nNegative prompt : dog", negative="Negative prompt : x"
    )


def test_grids_of_the_same_pictures_have_the_same_bytes() -> None:
    pictures = [picture(0), picture(1)]
    assert grid.compose(pictures) == grid.compose(pictures)
    assert grid.compose(pictures, image_format="WEBP") == grid.compose(pictures, image_format="WEBP")


def test_overlong_or_empty_parameters_are_left_out() -> None:
    for text in ("x" * 40_000, ""):
        assert (
            "parameters" not in Image.open(io.BytesIO(grid.compose([encode_png(Image.new("RGB", (8, 8)), text)]))).info
        )
