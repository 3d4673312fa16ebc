"""The button rows under a card: their buttons, Discord's limits, and ids that outlive this version."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import discord
import msgspec
import pytest

from bot.discord.cards import button_layout
from bot.discord.components.buttons import BUTTONS, CORE_BUTTONS, CUSTOM_ID
from bot.domain.dto import PictureRef
from engine.contract import Amendment, DropImages, Recipe, UpscaleTask
from shared.sample_views import JOB, PARENT, make_recipe, make_view


def row_labels(row: button_layout.ButtonRow) -> list[str]:
    return [button.label or button.emoji for button in row]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_grid_has_u_and_v_for_each_picture_and_the_common_buttons(count: int) -> None:
    upscale_row, vary_row, other_row = button_layout.build_finished_rows(
        make_view(count=count, ladder_images=tuple(range(count)))
    )
    assert row_labels(upscale_row) == [*(f"U{n + 1}" for n in range(count)), "🔄"]
    assert [button.custom_id for button in vary_row] == [*(f"vary:{JOB}:{n}" for n in range(count)), f"more:{JOB}"]
    assert row_labels(other_row) == ["Remix", "Film", "Walk", "🚩", "🗑️"]
    assert other_row[0].custom_id == f"remix:{JOB}"


def test_a_single_picture_has_a_favourite_button() -> None:
    *_, other_row = button_layout.build_finished_rows(make_view(count=1))
    assert row_labels(other_row) == ["Remix", "❤️", "🚩", "🗑️"]


def test_an_upscale_has_every_button_that_edits_it() -> None:
    pictures = (PictureRef(0, "0" * 64, 256, 256),)
    view = make_view(task=UpscaleTask(source="0" * 64), action="upscale", parent_image=(PARENT, 2), pictures=pictures)
    vary_row, pan_row, menu_row, other_row = button_layout.build_finished_rows(view)
    actions = ("subtle", "strong", "zoomsome", "zoomtwice", "branch")
    assert [button.custom_id for button in vary_row] == [f"{press}:{JOB}:0" for press in actions]
    assert row_labels(pan_row) == ["← Pan", "Pan →", "↑ Pan", "↓ Pan", "Edit…"]
    assert row_labels(menu_row) == ["Compare"]
    assert row_labels(other_row) == ["Remix", "❤️", "🚩", "🗑️"]
    assert other_row[0].custom_id == f"remix:{JOB}:0"
    flagged_view = replace(view, needs_check=True, pictures=(PictureRef(0, "0" * 64, 384, 256, verdict="flagged"),))
    _, _, menu_row, *other_row = button_layout.build_finished_rows(flagged_view)
    assert row_labels(menu_row) == ["Make square", "Compare"]
    assert len(other_row) == 2


def test_the_offered_edits_depend_on_the_pictures_shape_and_parent() -> None:
    usual_actions = tuple(press for press in button_layout.PICTURE_ACTION_LABELS if press not in ("square", "compare"))
    assert button_layout.picture_action_kinds(make_view(), 2) == usual_actions
    wide_view = make_view(pictures=(PictureRef(0, "0" * 64, 96, 64),))
    assert button_layout.picture_action_kinds(wide_view, 0) == (*usual_actions, "square")
    assert button_layout.picture_action_kinds(replace(wide_view, action="vary", parent_image=(PARENT, 1)), 0) == (
        *usual_actions,
        "square",
        "compare",
    )


@pytest.mark.parametrize("is_private", [{"is_private": True}, {"guild": "discord:dm:1"}])
def test_a_job_that_only_its_author_sees_has_no_report_button(is_private: dict[str, Any]) -> None:
    assert "🚩" not in [
        each for row in button_layout.build_finished_rows(make_view(**is_private)) for each in row_labels(row)
    ]


def test_with_every_picture_held_there_are_at_most_five_rows_of_five() -> None:
    pictures = tuple(PictureRef(index, "0" * 64, 64, 64, verdict="flagged") for index in range(4))
    rows = button_layout.build_finished_rows(make_view(needs_check=True, pictures=pictures, ladder_images=(0, 1, 2, 3)))
    assert len(rows) == 5
    assert all(1 <= len(row) <= 5 for row in rows)
    ids = [button.custom_id for row in rows for button in row]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(CUSTOM_ID, each) for each in ids)


def test_a_held_draft_has_no_button_that_finishes_it() -> None:
    """Beside the moderators' two rows there would be six."""
    pictures = tuple(PictureRef(index, "0" * 64, 64, 64, verdict="flagged") for index in range(4))
    view = make_view(needs_check=True, pictures=pictures, ladder_images=(0, 1, 2, 3))
    assert isinstance(view.task, Recipe)
    draft = replace(view, task=msgspec.structs.replace(view.task, steps=1000, evaluations=25))
    rows = button_layout.build_finished_rows(draft)
    assert rows == button_layout.build_finished_rows(view)
    shown = replace(draft, pictures=tuple(replace(picture, verdict="passed") for picture in pictures))
    assert [button.kind for button in button_layout.build_finished_rows(shown)[-1]] == ["finish"]


def test_ids_of_older_messages_are_still_valid() -> None:
    for old in (f"up:{JOB}:3", f"vary:{JOB}:0", f"reroll:{JOB}", f"cancel:{JOB}", f"deny:{JOB}:1"):
        assert re.fullmatch(CUSTOM_ID, old)
    for invalid_id in (
        f"up:{JOB[:-1]}",
        f"open:{JOB}",
        f"up:{JOB}:",
        f"up:{JOB}:-1",
        f"up:{JOB}:1\n",
        f"mine:show:{JOB}",
    ):
        assert not re.fullmatch(CUSTOM_ID, invalid_id)


def test_every_press_has_a_handler() -> None:
    assert len(CORE_BUTTONS) == len({row.kind for row in CORE_BUTTONS})
    assert {*button_layout.BUTTON_EMOJI, *button_layout.PICTURE_ACTION_LABELS} <= set(BUTTONS)


def test_upscale_and_vary_look_alike_and_only_destructive_buttons_are_red() -> None:
    assert BUTTONS["up"].style is BUTTONS["vary"].style is discord.ButtonStyle.secondary
    red = {row.kind for row in CORE_BUTTONS if row.style is discord.ButtonStyle.danger}
    assert red == {"cancel", "erase", "deny"}


def test_a_developing_picture_can_be_steered_while_several_images_are_left() -> None:
    view = make_view(state="running")
    assert [row_labels(row) for row in button_layout.build_developing_rows(view)] == [
        ["Cancel", "Keep…", "Say more…", "Again from here"]
    ]
    dropped = Amendment(1, 100, DropImages((0, 1, 3)))
    one_left = replace(view, task=msgspec.structs.replace(make_recipe(4), amendments=(dropped,)))
    assert [row_labels(row) for row in button_layout.build_developing_rows(one_left)] == [
        ["Cancel", "Say more…", "Again from here"]
    ]
