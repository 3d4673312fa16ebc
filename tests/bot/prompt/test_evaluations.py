"""`--evaluations` and `--draft`: what they make of a recipe, what they say, and what they refuse."""

from __future__ import annotations

from dataclasses import replace as replace_parsed
from typing import Any

import pytest
from msgspec.structs import replace

from bot.discord.cards.button_layout import build_finished_rows
from bot.domain.errors import UserError
from bot.domain.texts import format_footer
from bot.jobs.beginnings import BranchEdit, branch_recipe
from bot.jobs.model_catalog import SHIPPED_MODEL
from bot.jobs.recipe import remix_recipe
from bot.jobs.variations import finish_recipe
from bot.prompt import build_recipe, parse
from engine.contract import (
    Amendment,
    Branch,
    Recipe,
    SetNegative,
    SplitImage,
    find_amendments_problem,
    list_evaluated_steps,
    list_lives,
)
from engine.picture_files import format_parameters
from shared.sample_views import make_view

ALL_SAMPLERS = replace(SHIPPED_MODEL, samplers=("ddpm", "ddim", "euler", "dpmpp_2m", "heun"))


def build(text: str, **options: Any) -> Recipe:
    return build_recipe(parse(text, ALL_SAMPLERS, options=options).prompts[0], ALL_SAMPLERS, 7)


@pytest.mark.parametrize(
    ("flags", "evaluations"),
    [
        ("", 100),
        ("--evaluations auto", 100),
        ("--evaluations ALL", 0),
        ("--evaluations 40", 40),
        ("--evaluations 1000", 0),
        ("--draft", 25),
        ("--draft --evaluations 60", 60),
        ("--draft --steps 20", 0),
        ("--steps 60", 0),
        ("--steps 60 --evaluations 30", 30),
        ("--fast", 0),
        ("--quality 0.25", 25),
        ("--sampler heun", 0),
        ("--sampler euler --steps 400", 100),
    ],
)
def test_a_recipe_has_as_many_evaluations_as_its_flags_say(flags: str, evaluations: int) -> None:
    assert build(f"a fox {flags}").evaluations == evaluations


def test_a_front_end_gives_it_as_an_option() -> None:
    assert build("a fox", evaluations=40).evaluations == 40
    assert build("a fox", evaluations="all").evaluations == 0
    assert build("a fox --evaluations 40", draft=True).evaluations == 40


@pytest.mark.parametrize("value", ["4", "0", "1001", "-5", "some", ""])
def test_other_values_are_refused_with_what_is_possible(value: str) -> None:
    with pytest.raises(UserError, match="it takes 5 to 1000, all or auto"):
        parse(f"a fox --evaluations {value}", None)


def test_a_sampler_that_runs_whole_refuses_to_skip() -> None:
    with pytest.raises(UserError, match="cannot do --evaluations or --draft"):
        build("a fox --sampler heun --steps 60 --draft")


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("--steps 30 --evaluations 40", "Of 30 steps each has an evaluation, so --evaluations changes nothing."),
        ("--draft --evaluations 40", "Beside --evaluations, --draft changes nothing."),
        ("--draft --steps 20", "--draft changes nothing: 20 steps are a draft already."),
    ],
)
def test_a_flag_without_an_effect_gets_a_note(flags: str, note: str) -> None:
    assert note in parse(f"a fox {flags}", ALL_SAMPLERS).notes
    assert note not in parse("a fox --draft", ALL_SAMPLERS).notes


def test_a_model_whose_samplers_are_no_tables_skips_nothing() -> None:
    whole = replace(ALL_SAMPLERS, lacks=("evaluations",), guidance_start=0.0, guidance_stop=1.0)
    assert build_recipe(parse("a fox --steps 400", None).prompts[0], whole, 7).evaluations == 0
    with pytest.raises(UserError, match="skips no evaluation of its network"):
        build_recipe(parse("a fox --steps 400 --draft", None).prompts[0], whole, 7)
    with pytest.raises(UserError, match="cannot do --tile"):
        build_recipe(parse("a fox --sampler heun --steps 40 --tile", None).prompts[0], whole, 7)


def test_a_remix_keeps_its_evaluations_unless_its_chain_changes() -> None:
    def remix(recipe: Recipe, text: str) -> int:
        return remix_recipe(recipe, parse(text, None).prompts[0], ALL_SAMPLERS).evaluations

    draft = build("a fox --draft")
    full = build("a fox --evaluations all")
    assert [remix(draft, text) for text in ("an owl", "an owl --evaluations auto", "an owl --steps 500")] == [
        25,
        100,
        100,
    ]
    assert [remix(full, text) for text in ("an owl", "an owl --draft", "an owl --sampler ddim")] == [0, 25, 100]


def test_a_branch_with_other_evaluations_begins_without_the_history_of_its_keyframe() -> None:
    base = build("a fox --count 1")
    step = list_evaluated_steps(base)[50]
    same = branch_recipe(base, "a" * 64, step, BranchEdit("a fox", None, {"guidance": 6.0}), ALL_SAMPLERS)
    other = branch_recipe(base, "a" * 64, step, BranchEdit("a fox", None, {"evaluations": "all"}), ALL_SAMPLERS)
    starts = [each.start for each in (same, other)]
    assert starts == [Branch("a" * 64, step), Branch("a" * 64, step, ladder_step=step)]


def test_a_branch_of_a_stopped_picture_leaves_the_history_of_its_last_evaluation() -> None:
    stopped = build("a fox --count 1 --stop 50")
    base = replace(stopped, stop_at=1.0)
    rest = branch_recipe(base, "a" * 64, 500, BranchEdit("a fox", None, {}), ALL_SAMPLERS, parent=stopped)
    assert rest.start == Branch("a" * 64, 500, ladder_step=500)


def test_finishing_a_draft_leaves_splits_and_branches_where_they_were() -> None:
    draft = build("a fox --count 2 --draft")
    step = list_evaluated_steps(draft)[8]
    split = Amendment(1, step, SplitImage(0, (2,), 9))
    words = Amendment(2, step, SetNegative("fog"))
    steered = replace(draft, amendments=(split, words), start=Branch("a" * 64, list_evaluated_steps(draft)[2]))
    finished = finish_recipe(steered)
    lives = [life for recipe in (steered, finished) for life in list_lives(recipe) if life.parent is not None]
    assert lives[0].first_step == lives[1].first_step == list_evaluated_steps(draft)[9]
    assert find_amendments_problem(finished) == ""
    assert isinstance(finished.start, Branch)
    assert (finished.evaluations, finished.start.ladder_step) == (0, finished.start.step)


def test_footer_and_picture_say_it() -> None:
    recipe = build("a fox --count 1")
    assert format_footer(recipe, ms_per_step=48.0).startswith("1000 steps of DDPM with 100 evaluations · ")
    assert format_footer(recipe, ms_per_step=48.0).endswith(" · 48.0 ms an evaluation")
    assert "Steps: 1000, " in format_parameters(recipe, 0, "abc")
    assert "Evaluations: 100" in format_parameters(recipe, 0, "abc")
    full = build("a fox --evaluations all")
    assert format_footer(full, ms_per_step=48.0).endswith(" · 48.0 ms a step")
    assert "valuations" not in format_footer(full) + format_parameters(full, 0, "abc")


def test_only_a_draft_has_the_button_that_finishes_it() -> None:
    def kinds(recipe: Recipe) -> list[str]:
        return [button.kind for row in build_finished_rows(replace_parsed(make_view(), task=recipe)) for button in row]

    assert "finish" in kinds(build("a fox --draft"))
    assert "finish" not in kinds(build("a fox"))
