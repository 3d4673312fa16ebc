"""The details of one job and a page of `/mine`: within Discord's limits, whatever a member wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import discord
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.discord.cards.job_cards import escape_code_block, render_details, render_parameters
from bot.discord.commands.mine import FILTER_TITLES, JobSelect, MineLayout, PageButton, render_entry
from bot.discord.job_choice import MAX_CHOICE_CHARS, filter_jobs, job_label
from bot.domain.dto import Destination, JobView, PictureRef
from bot.domain.texts import format_footer
from bot.jobs.history import HistoryEntry, HistoryPage
from engine.contract import Concept, Lora, NoiseAncestor, Recipe, UpscaleTask
from engine.picture_files import format_parameters

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
PARENT = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
NOW = 1_800_000_000.0
RECIPE = Recipe(
    concepts=(Concept(text="terrier, looking up"), Concept(text="blue", weight=-0.5)),
    negative="fog",
    model="embedded",
    sampler="dpmpp_2m",
    steps=30,
    seed=7,
    guidance=3.5,
    width=64,
    height=48,
    dtype="float32",
)


def make_view(**changes: Any) -> JobView:
    view = JobView(
        id=JOB,
        state="finished",
        prompt="terrier, looking up --seed 7",
        task=RECIPE,
        member_id="discord:1",
        member_name="Alice",
        guild="discord:2",
        created=NOW - 90,
        started=NOW - 60,
        finished=NOW,
        seconds=12.3,
        ms_per_step=8.5,
        jobs_ahead=None,
        eta=None,
        reason="",
        step=30,
        total_steps=30,
        ladder_images=(0,),
        parent_image=None,
        action="imagine",
        pictures=(PictureRef(0, "0" * 64, 64, 48),),
        cost=12.0,
    )
    return replace(view, **changes)


def test_parameters_have_the_usual_text_format() -> None:
    assert render_parameters(make_view()) == (
        "terrier, looking up blue::-0.5\nNegative prompt: fog\n"
        "Steps: 30, Sampler: DPM++ 2M, CFG scale: 3.5, Seed: 7, Size: 64x48, Model: embedded"
    )


def test_parameters_name_loras_and_the_guidance_interval_as_other_tools_do() -> None:
    loras = (Lora(name="style", weight=0.8, revision="abc"), Lora(name="x"))
    recipe = msgspec.structs.replace(
        RECIPE, loras=loras, guidance_start=0.2, guidance_stop=0.8, sampler="dpmpp_2m_karras"
    )
    words, _, fields = render_parameters(make_view(task=recipe)).split("\n")
    assert words == "terrier, looking up blue::-0.5 <lora:style:0.8> <lora:x:1>"
    assert "Sampler: DPM++ 2M Karras" in fields
    assert fields.endswith("Guidance interval: 0.2-0.8")
    assert format_footer(recipe) == (
        "30 steps of DPM++ 2M Karras · seed 7 · guidance 3.5 from 0.2 to 0.8 · 64×48 · embedded · LoRA style ×0.8 · "
        "LoRA x ×1"
    )


def test_parameters_name_the_seed_of_each_picture_that_the_judge_chose() -> None:
    best = msgspec.structs.replace(RECIPE, count=2, candidate_count=4)
    assert "Seeds" not in render_parameters(make_view(task=best))
    chosen = msgspec.structs.replace(best, chosen_candidates=(3, 0))
    assert render_parameters(make_view(task=chosen)).endswith("Best of: 4, Seeds: 10 7")


def test_every_field_matches_what_the_engine_writes_to_the_png() -> None:
    variation = Recipe(
        **{name: getattr(RECIPE, name) for name in RECIPE.__struct_fields__ if name != "lineage"},
        lineage=(NoiseAncestor(seed=3, index=1, strength=0.25),),
    )
    with_lora = Recipe(
        **{name: getattr(RECIPE, name) for name in RECIPE.__struct_fields__ if name not in ("guidance_start", "loras")},
        guidance_start=0.25,
        loras=(Lora("ink", 0.5), Lora("paper")),
    )
    for recipe in (RECIPE, variation, with_lora):
        *words, fields = render_parameters(make_view(task=recipe)).split("\n")
        *engines_words, engines_fields = format_parameters(recipe, 0, "abc").split("\n")
        assert words == engines_words
        assert set(fields.split(", ")) <= set(engines_fields.split(", "))


def test_details_name_author_time_recipe_and_cost() -> None:
    text = render_details(make_view(notes=("The braces make 2 jobs.",)), NOW)
    for part in ("Alice", "✅ finished", "waited 30 s", "took 13 s", "8.5 ms a step", "costs 12 s", "Seed: 7", JOB):
        assert part in text
    assert "-# The braces make 2 jobs." in text


def test_parameters_name_the_upscale_of_the_final_pictures() -> None:
    pictures = tuple(PictureRef(index, "0" * 64, 256, 192) for index in range(4))
    assert "Size: 64x48, Model: embedded, Hires upscale: 4" in render_details(make_view(pictures=pictures), NOW)
    assert "Hires" not in render_details(make_view(), NOW)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"state": "queued", "wait_reason": "2 ahead of it.", "eta": 50.0},
            f"⏳ waiting: 2 ahead of it. · done <t:{NOW + 50:.0f}:R>",
        ),
        ({"state": "running", "step": 15, "eta": 5.0}, "▶️ running · 50 % · step 15 of 30"),
        ({"state": "failed", "reason": "Our fault."}, "Our fault."),
        ({"deleted_at": NOW}, "Its pictures were deleted"),
        ({"is_private": True}, "private"),
        ({"cost": 0.0}, "costs nothing"),
        ({"action": "vary", "parent_image": (PARENT, 2)}, f"A variation of picture 3 of `{PARENT}`"),
        ({"action": "reroll", "parent_image": (PARENT, 0)}, f"Another seed of `{PARENT}`"),
        ({"action": "reproduce", "parent_image": (PARENT, 0)}, f"The same as `{PARENT}`"),
        ({"action": "remix", "parent_image": (PARENT, 0)}, f"Another prompt for picture 1 of `{PARENT}`"),
        (
            {"action": "upscale", "parent_image": (PARENT, 1), "task": UpscaleTask(source="0" * 64)},
            f"An upscale of picture 2 of `{PARENT}`",
        ),
    ],
)
def test_details_in_every_state(changes: dict[str, Any], part: str) -> None:
    assert part in render_details(make_view(**changes), NOW)


wild_text = st.text(max_size=3000) | st.text(alphabet="@everyone<>&#`*_~|\\[]()/:t123 \n​‮", max_size=3000)


@settings(max_examples=60, deadline=None)
@given(wild_text, wild_text)
def test_details_stay_within_limits_and_text_from_members_does_no_harm(prompt: str, other: str) -> None:
    recipe = Recipe(
        **{name: getattr(RECIPE, name) for name in RECIPE.__struct_fields__ if name not in ("concepts", "negative")},
        concepts=(Concept(text=prompt or "x"),),
        negative=other,
    )
    view = make_view(
        prompt=prompt, member_name=other[:100], reason=other, notes=(other,) * 6, wait_reason=other, task=recipe
    )
    text = render_details(view, NOW)
    assert len(text) <= 2000
    assert text.count("```") in (0, 2)
    entry = HistoryEntry(view, Destination("discord", {"guild": "1", "channel": "2", "message": "3"}), other, (0, 3))
    for each in (text, render_entry(entry), escape_code_block(prompt, 500)):
        assert "@everyone" not in each
        assert "@here" not in each
    for each in (job_label(view, other, now=NOW), *(choice.name for choice in filter_jobs([view], "", "discord:1"))):
        assert 1 <= len(each) <= MAX_CHOICE_CHARS


def make_page(jobs: int, page_filter: Any = "all", number: int = 1, job_count: int = 3) -> HistoryPage:
    words = "*" * 600
    entries = tuple(
        HistoryEntry(
            make_view(
                id=f"01ARZ3NDEKTSV4RRFFQ69G5FA{n}", prompt=words, wait_reason=words, reason=words, state="failed"
            ),
            Destination("discord", {"guild": "1" * 19, "channel": "2" * 19, "message": "3" * 19}),
            words,
            (0, 1, 2, 3),
        )
        for n in range(jobs)
    )
    return HistoryPage(entries, page_filter, number, job_count, jobs)


@pytest.mark.asyncio
@pytest.mark.parametrize("page_filter", FILTER_TITLES)
async def test_the_fullest_page_is_within_discords_limits(page_filter: Any) -> None:
    page = make_page(5, page_filter, 2)
    menu = JobSelect([(entry.view.id, job_label(entry.view, now=NOW)) for entry in page.entries])
    filter_buttons = [PageButton(each, 1, "f", is_current=each == page_filter) for each in FILTER_TITLES]
    button_rows = [[menu], filter_buttons, [PageButton(page_filter, 1, "n"), PageButton(page_filter, 3, "o")]]
    sheet = MineLayout(page, [entry.view.id for entry in page.entries], button_rows)
    assert sheet.content_length() <= 4000
    assert sheet.total_children_count <= 40
    ids = [item.custom_id for item in sheet.walk_children() if hasattr(item, "custom_id")]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(ids) == len(set(ids)), "Discord refuses two of the same"
    assert sum(isinstance(item, discord.ui.Section) for item in sheet.walk_children()) == 5


def test_a_jobs_label_says_how_far_it_is() -> None:
    assert job_label(make_view(), now=NOW + 61) == "terrier, looking up --seed 7 · 1 min 1 s ago"
    assert job_label(make_view(state="cancelled"), now=NOW + 5).endswith("cancelled 5 s ago")
    assert job_label(make_view(state="queued", jobs_ahead=2), "Bob", now=NOW).endswith("by Bob · waiting, 2 jobs ahead")
    assert job_label(make_view(state="running", step=3), now=NOW).endswith("running, step 3 of 30")
    assert job_label(make_view(is_private=True), "Bob", now=NOW).startswith("A private job · by Bob"), (
        "moderators may cancel it"
    )
