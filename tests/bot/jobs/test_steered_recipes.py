"""What goes on from a steered picture: remixes, branches, prompts, and what shows its pictures."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from PIL import Image

from bot.discord.cards.button_layout import build_finished_rows
from bot.discord.cards.job_cards import render_parameters
from bot.discord.cards.pictures import render_preview
from bot.domain.dto import Member, PictureRef
from bot.domain.errors import UserError
from bot.domain.texts import format_footer
from bot.jobs.beginnings import branch_base, remix_base
from bot.jobs.recipe import can_interpolate
from bot.pictures.image_codec import decode_image, encode_image
from bot.policy.rules.explanations import member_texts
from bot.prompt.capability_check import check_sampler
from bot.prompt.change_texts import final_prompt, prompt_at_step
from bot.web.answers import GeneratedJob, describe_job
from engine.contract import (
    Amendment,
    Change,
    Concept,
    DropImages,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    noise_seed,
)
from shared.sample_views import make_recipe, make_view

READER = Member("discord:1", "Alice", "discord:2")
MIX = SetConcepts((Concept("fox", 0.4), Concept("dog", 0.6)))


def amend(recipe: Recipe, *amendments: tuple[int, Change]) -> Recipe:
    numbered = tuple(Amendment(number, step, change) for number, (step, change) in enumerate(amendments, 1))
    return msgspec.structs.replace(recipe, amendments=numbered)


STEERED = amend(
    make_recipe(2),
    (100, MIX),
    (200, SplitImage(1, (3,), 50)),
    (300, DropImages((0,))),
    (400, SetNegative("fog")),
    (400, SetGuidance(6.0)),
)


def test_a_remix_goes_on_with_the_words_and_the_noise_that_are_shown() -> None:
    assert remix_base(make_recipe(2), None) == make_recipe(2), "nobody steered it"
    whole = remix_base(STEERED, None)
    split = remix_base(STEERED, 3)
    assert (whole.concepts, whole.negative, whole.guidance) == (MIX.concepts, "fog", 6.0)
    assert not whole.amendments
    assert (split.count, noise_seed(split, 0)) == (1, 50 + 3)
    only_second = remix_base(amend(make_recipe(4), (5, DropImages((0, 2, 3)))), None)
    assert (only_second.count, noise_seed(only_second, 0)) == (1, 7 + 1)
    assert not can_interpolate(STEERED)


def test_a_branch_keeps_later_changes_only_where_they_were_said_before_the_step() -> None:
    assert branch_base(STEERED, 3, 150).seed == 7 + 1, "before the split it is the second image"
    assert branch_base(STEERED, 3, 250).seed == 50 + 3
    assert not branch_base(STEERED, 3, 250).amendments
    undone = branch_base(STEERED, 1, 350, 400)
    assert (undone.concepts, undone.negative, undone.guidance) == (MIX.concepts, "", 3.0)
    kept = branch_base(STEERED, 1, 350, 401)
    assert [type(each.change) for each in kept.amendments] == [SetConcepts, SetNegative, SetGuidance]
    chaotic = branch_base(msgspec.structs.replace(STEERED, chaos=1.0), 1, 350, 401)
    assert (chaotic.chaos, chaotic.guidance) == (0.0, 5.0), "the second of two has twice the guidance, counted from 1"
    assert chaotic.amendments[-1].change == SetGuidance(11.0)


def test_the_prompt_of_a_steered_picture_is_what_it_ended_with() -> None:
    assert final_prompt("terrier --steps 9", make_recipe()) == "terrier --steps 9"
    assert final_prompt("terrier", STEERED) == "fox::0.4 dog::0.6 --no fog"
    assert prompt_at_step("terrier", STEERED, 99) == "terrier"
    assert prompt_at_step("terrier", STEERED, 100) == "fox::0.4 dog::0.6"
    assert set(member_texts("terrier", STEERED)) == {"terrier", "fox dog", "", "fog"}


def test_a_sampler_of_a_whole_pipeline_refuses_amendments() -> None:
    with pytest.raises(UserError, match="cannot be steered"):
        check_sampler(msgspec.structs.replace(STEERED, sampler="unipc"))


def test_cards_and_the_page_show_the_pictures_that_are_there() -> None:
    pictures = tuple(PictureRef(index, "0" * 64, 64, 64) for index in (1, 3))
    view = replace(make_view(), task=STEERED, pictures=pictures)
    ups, varies, *_ = build_finished_rows(view)
    assert [button.label for button in (*ups[:2], *varies[:2])] == ["U2", "U4", "V2", "V4"]
    assert [button.index for button in ups[:2]] == [1, 3]
    job = describe_job(view, READER)
    assert isinstance(job, GeneratedJob)
    assert (job.count, job.images, job.prompt_text) == (2, [2, 4], "fox::0.4 dog::0.6")
    assert [picture.n for picture in job.pictures] == [2, 4]
    assert (job.negative, job.guidance) == ("fog", 6.0)
    assert "steered by 5 changes" in format_footer(STEERED)
    assert "Steered: 5 changes" in render_parameters(view)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("recipe", "frames", "columns", "rows"),
    [
        (make_recipe(2), (0, 1), 2, 1),
        (make_recipe(2), (0, 1, 3), 2, 2),  # a split that is news
        (amend(make_recipe(3), (5, DropImages((0,)))), (0, 1, 2), 2, 1),
        (amend(make_recipe(3), (5, DropImages((0, 2)))), (0, 1, 2), 1, 1),
    ],
)
async def test_a_preview_shows_what_develops(recipe: Recipe, frames: tuple[int, ...], columns: int, rows: int) -> None:
    frame = encode_image(Image.new("RGB", (32, 32), "red"), "JPEG")
    preview = await render_preview(replace(make_view(), task=recipe), dict.fromkeys(frames, frame))
    assert preview is not None
    width, height = decode_image(preview.payload).size
    assert (round(width / 256), round(height / 256)) == (columns, rows)
