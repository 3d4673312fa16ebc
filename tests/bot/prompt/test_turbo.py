"""`--turbo`: the recipe that it stands for, the notes of what it does not suit, and the jobs made from its pictures."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bot.domain.errors import UserError
from bot.jobs.recipe import remix_recipe, replace_start, reroll_recipe, vary_recipe, without_start
from bot.prompt import build_recipe as to_recipe
from bot.prompt import parse
from engine.contract import ImageToImage, InitImage, Lora, ModelProfile, Recipe, count_row_steps, estimate_cost
from engine.contract.fields import SAMPLER_TITLES

PLAIN = ModelProfile(
    name="large",
    revision="1",
    dtype="bfloat16",
    size=64,
    multiple=8,
    max_pixels=128 * 128,
    tokens=77,
    steps=1000,
    sampler="ddpm",
    guidance=4.0,
    row_ms=3.0,
    encode_ms=5.0,
    decode_ms=5.0,
    samplers=tuple(SAMPLER_TITLES),
    guidance_start=0.3,
    guidance_stop=0.8,
    loras=(Lora("style", 0.7, "abc"),),
)
TURBO = msgspec.structs.replace(PLAIN, loras=(Lora("turbo", 1.0, "def"), *PLAIN.loras))
NO_TURBO_NOTE = "large has no turbo, so --turbo is ignored; --fast takes 30 steps."


def build_recipe(text: str, profile: ModelProfile = TURBO, **options: object) -> Recipe:
    return to_recipe(parse(text, profile, options=options).prompts[0], profile, 7)


def sampling(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.sampler, recipe.steps, recipe.guidance, {lora.name: lora.weight for lora in recipe.loras}


def test_turbo_is_four_steps_of_lcm_without_guidance_and_costs_as_little() -> None:
    recipe = build_recipe("fox --turbo")
    assert sampling(recipe) == ("lcm", 4, 1.0, {"turbo": 1.0})
    assert recipe.loras[0].revision == "def"
    assert parse("fox --turbo", TURBO).notes == ()
    assert build_recipe("fox", turbo=True) == recipe
    assert count_row_steps(recipe) == 4 * 4
    assert estimate_cost(recipe, TURBO) == pytest.approx((16 * 3.0 + 2 * 5.0 + 4 * 5.0) / 1000)


def test_other_flags_win_over_what_turbo_stands_for() -> None:
    assert sampling(build_recipe("fox --turbo --steps 6 --lora style")) == ("lcm", 6, 1.0, {"turbo": 1.0, "style": 0.7})
    assert sampling(build_recipe("fox --turbo --quality 2")) == ("lcm", 8, 1.0, {"turbo": 1.0})
    assert sampling(build_recipe("fox --turbo --lora turbo:0.5 --fast")) == ("lcm", 4, 1.0, {"turbo": 0.5})
    assert sampling(build_recipe("fox --turbo --lora none")) == ("lcm", 4, 1.0, {"turbo": 1.0})
    assert sampling(build_recipe("fox --turbo --sampler ddim --guidance 2"))[:3] == ("ddim", 4, 2.0)
    with pytest.raises(UserError, match="--lora may stand for 4 LoRAs"):
        build_recipe("fox --turbo --lora a --lora b --lora c --lora d")


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("--sampler ddim", "--turbo is made for the sampler lcm without guidance: others make its pictures worse."),
        ("--guidance 4", "--turbo is made for the sampler lcm without guidance: others make its pictures worse."),
        ("--no fog", "--turbo draws without guidance, so --no changes nothing."),
        ("--interval 0.2-0.8", "--turbo draws without guidance, so --interval changes nothing."),
        ("--chaos 50", "--turbo draws without guidance, so --chaos changes nothing."),
        ("--fast", "Beside --turbo, --fast changes nothing."),
    ],
)
def test_a_flag_that_does_not_suit_turbo_gets_a_note(flags: str, note: str) -> None:
    assert parse(f"fox {flags} --turbo", TURBO).notes == (note,)


def test_a_model_without_turbo_ignores_it_with_a_note() -> None:
    assert sampling(build_recipe("fox --turbo", PLAIN)) == ("ddpm", 1000, 4.0, {})
    assert parse("fox --turbo", PLAIN).notes[0] == NO_TURBO_NOTE
    no_lcm = msgspec.structs.replace(TURBO, samplers=("ddpm", "ddim"))
    assert sampling(build_recipe("fox --turbo", no_lcm)) == ("ddpm", 1000, 4.0, {})


def remix(base: Recipe, text: str) -> tuple[Any, ...]:
    return sampling(remix_recipe(base, parse(text, None).prompts[0], TURBO))


def test_jobs_from_a_turbo_picture_keep_its_recipe() -> None:
    base = build_recipe("fox --turbo --steps 6")
    kept = ("lcm", 6, 1.0, {"turbo": 1.0})
    assert sampling(vary_recipe(base, 0, 0.2, 9)) == sampling(reroll_recipe(base, 9)) == kept
    assert remix(base, "wolf") == remix(base, "wolf --turbo") == remix(base, "wolf --lora none") == kept
    assert remix(base, "wolf --lora style:1") == ("lcm", 6, 1.0, {"turbo": 1.0, "style": 1.0})
    assert remix(build_recipe("fox"), "wolf --turbo") == ("lcm", 4, 1.0, {"turbo": 1.0})


def test_a_remix_with_turbo_keeps_the_loras_of_its_picture() -> None:
    base = build_recipe("fox --lora style:0.5")
    assert remix(base, "wolf --turbo") == ("lcm", 4, 1.0, {"turbo": 1.0, "style": 0.5})
    assert remix(base, "wolf --turbo --lora none") == ("lcm", 4, 1.0, {"turbo": 1.0})


def test_a_remix_with_another_sampler_leaves_turbo() -> None:
    base = build_recipe("fox --turbo --lora style:0.5")
    assert remix(base, "wolf --sampler ddim") == ("ddim", 1000, 4.0, {"style": 0.5})
    assert remix(base, "wolf --sampler ddim --steps 20 --guidance 2 --lora none") == ("ddim", 20, 2.0, {})
    assert remix(base, "wolf --sampler lcm") == ("lcm", 4, 1.0, {"turbo": 1.0, "style": 0.5})


def test_a_negative_weight_leaves_work_for_the_negative_prompt() -> None:
    assert parse("apple:: blue::-0.5 --no worm --turbo", TURBO).notes == ()


def begin(recipe: Recipe, strength: float, *, keeps_steps: bool = False) -> Recipe:
    start = ImageToImage((InitImage("a" * 64),), strength)
    return replace_start(recipe, start, None if keeps_steps else recipe.steps)


@pytest.mark.parametrize(("strength", "steps"), [(0.3, 14), (0.6, 7), (0.9, 5), (1.0, 4), (0.1, 40)])
def test_with_an_init_image_four_steps_of_a_finer_schedule_run(strength: float, steps: int) -> None:
    """Of four steps a strength of 0.3 would leave one."""
    base = build_recipe("fox --turbo")
    recipe = begin(base, strength)
    assert (recipe.steps, recipe.steps - recipe.first_step) == (steps, 4)
    plain = without_start(recipe)
    assert (plain.steps, plain.start) == (base.steps, None)
    assert begin(plain, 0.9).steps == begin(base, 0.9).steps, "an edit of an edit"
    assert begin(build_recipe("fox --steps 20"), strength).steps == 20


def test_steps_that_a_member_chose_stay_with_an_init_image() -> None:
    assert begin(build_recipe("fox --turbo --steps 4"), 0.3, keeps_steps=True).steps == 4


def test_a_remix_with_turbo_of_a_picture_with_an_init_image_runs_four_steps() -> None:
    base = begin(build_recipe("fox --steps 20"), 0.3)
    turbo, chosen = (
        remix_recipe(base, parse(text, None).prompts[0], TURBO) for text in ("wolf --turbo", "wolf --turbo --steps 4")
    )
    assert (turbo.steps, turbo.steps - turbo.first_step) == (14, 4)
    assert turbo.start == base.start
    assert chosen.steps == 4


def test_the_least_strength_runs_what_the_schedule_of_lcm_has() -> None:
    recipe = begin(build_recipe("fox --turbo"), 0.05)
    assert (recipe.steps, recipe.steps - recipe.first_step) == (50, 2)
