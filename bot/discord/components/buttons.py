"""The buttons under a job: stateless, so that they work after any restart and in any process.

A custom id (`vary:<job>:<index>`) carries all that a press needs; `interaction_check` decides who may press.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.discord.cards.button_layout import Button
from bot.discord.components import (
    branches,
    deletion,
    more_menu,
    picture_actions,
    reports,
    review_buttons,
    steering,
    variations,
)
from bot.discord.components.forms import FormSubmission, parse_submission
from bot.discord.components.picture_actions import submit_once
from bot.discord.declarations import load_feature_buttons
from bot.discord.film import send_film
from bot.discord.responses import member_of, report_errors, require_permission, send_error, send_refusal
from bot.domain.errors import UserError
from bot.domain.feature import merge_rows
from bot.policy.permissions import Action

if TYPE_CHECKING:
    from bot.discord.cards.job_cards import Card
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView

log = logging.getLogger(__name__)

GREY = discord.ButtonStyle.secondary
BLUE = discord.ButtonStyle.primary
RED = discord.ButtonStyle.danger
GREEN = discord.ButtonStyle.success
BUTTON_STYLES: Mapping[str, discord.ButtonStyle] = MappingProxyType(
    {"subtle": BLUE, "strong": BLUE, "cancel": RED, "erase": RED, "deny": RED, "approve": GREEN, "finish": GREEN}
)
BUTTON_ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "up": "upscale",
        "vary": "vary",
        "subtle": "vary",
        "strong": "vary",
        "reroll": "reroll",
        "remix": "remix",
        "film": "film",
        "favour": "favourite",
        "report": "report",
        "delete": "delete",
        "erase": "delete",
        "cancel": "cancel",
        "look": "approve",
        "approve": "approve",
        "deny": "deny",
        "show": "approve",
        "dismiss": "dismiss",
        "more": "details",
        "walk": "walk",
        "finish": "finish",
        **picture_actions.PICTURE_ACTIONS,
        **steering.STEERING_ACTIONS,
    }
)
ADDED_BUTTONS = load_feature_buttons()
PRESS_ACTIONS = merge_rows(BUTTON_ACTIONS, {each.kind: each.action for each in ADDED_BUTTONS.values()})
PRESS_RUNNERS = (
    (steering.STEERING_ACTIONS, steering.run_steering_press),
    (picture_actions.PICTURE_ACTIONS, picture_actions.run_picture_action),
)
CORE_FORM_ACTIONS: Mapping[str, Action] = MappingProxyType(
    {"remix": "remix", "report": "report", "edit": "edit", "branch": "branch", "say": "steer"}
)
FORM_ACTIONS = merge_rows(
    CORE_FORM_ACTIONS, {each.kind: each.action for each in ADDED_BUTTONS.values() if each.submit is not None}
)
CUSTOM_ID = rf"(?P<press>{'|'.join(PRESS_ACTIONS)}):(?P<job>[0-9A-HJKMNP-TV-Z]{{26}})(?::(?P<index>\d{{1,9}}))?"
FAVOURITE_TEXTS = {True: "❤️ A favourite of yours now: `/mine favourites` has it.", False: "No favourite any more."}


class JobButton(ui.DynamicItem[ui.Button[ui.View]], template=CUSTOM_ID):
    """Any button of any job."""

    def __init__(self, button: Button, row: int | None = None) -> None:
        style = BUTTON_STYLES.get(button.kind, GREY)
        label = button.label or None
        item = ui.Button[ui.View](style=style, label=label, emoji=button.emoji or None, custom_id=button.custom_id)
        super().__init__(item, row=row)
        self.button = button
        self.job_view: JobView | None = None  # the job, once it is loaded

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        index = match["index"]
        label = getattr(item, "label", None) or ""
        return cls(Button(match["press"], match["job"], label, None if index is None else int(index)))

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        try:
            if self.button.kind != "dismiss":  # a reported job may have been deleted since
                self.job_view = await interaction.client.services.job_views.load_view(self.button.job)
            await require_permission(interaction, PRESS_ACTIONS[self.button.kind], self.job_view)
        except UserError as error:
            await send_refusal(interaction, error.sentence)
        except Exception:
            log.exception("job %s: a press of %s could not be checked", self.button.job, self.button.kind)
            await send_error(interaction)
        else:
            return True
        return False

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "job %s: a press of %s failed", self.button.job, self.button.kind):
            if self.job_view is None:
                await reports.dismiss_report(interaction, self.button.index or 0)
            else:
                await _run_action(interaction, self.button, self.job_view)


async def _submit_of_whole_job(interaction: Interaction, button: Button, view: JobView) -> None:
    """Submit what comes of all pictures of a job: a finished draft, or a walk. Raises `UserError`."""
    variations = interaction.client.services.variations
    submit = variations.finish if button.kind == "finish" else variations.interpolate_pictures
    await submit_once(
        interaction, button.custom_id, lambda member, destination, key: submit(view.id, member, destination, key=key)
    )


async def _run_action(interaction: Interaction, button: Button, view: JobView) -> None:
    """Do what the press asks for. Raises `UserError`."""
    match button.kind:
        case "cancel":
            text = await interaction.client.services.job_control.cancel(view.id, member_of(interaction))
            await interaction.response.send_message(text, ephemeral=True)
        case "film":
            await send_film(interaction, view)
        case "favour":
            is_favourite = await interaction.client.services.gallery.toggle_favourite(
                view.id, button.index or 0, member_of(interaction).id
            )
            await interaction.response.send_message(FAVOURITE_TEXTS[is_favourite], ephemeral=True)
        case "report":
            await reports.open_report_form(interaction, view)
        case "show":
            await reports.show_reported(interaction, view)
        case "delete":
            await deletion.send_confirmation(interaction, view)
        case "erase":
            await deletion.delete_confirmed(interaction, view)
        case "look":
            await review_buttons.show_held_pictures(interaction, view)
        case "approve" | "deny":
            await review_buttons.decide_picture(interaction, button)
        case "more":
            await more_menu.open_more_menu(interaction, view)
        case "finish" | "walk":
            await _submit_of_whole_job(interaction, button, view)
        case kind if kind in ADDED_BUTTONS:
            await ADDED_BUTTONS[kind].press(interaction, button, view)
        case _:
            run_press = next((run for kinds, run in PRESS_RUNNERS if button.kind in kinds), variations.run_variation)
            await run_press(interaction, button, view)


async def handle_job_form(interaction: Interaction) -> None:
    """Handle a submitted form about a job, also after a restart, with the check of its button; ignore other
    interactions.
    """
    submission = parse_submission(interaction)
    if submission is None or submission.form_name not in FORM_ACTIONS:
        return
    async with report_errors(interaction, log, "job %s: the form %s failed", submission.job, submission.form_name):
        view = await interaction.client.services.job_views.load_view(submission.job)
        await require_permission(interaction, FORM_ACTIONS[submission.form_name], view)
        await _submit_form(interaction, submission, view)


async def _submit_form(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    match submission.form_name:
        case "remix":
            await variations.submit_remix(interaction, submission, view)
        case "edit":
            await picture_actions.submit_edit(interaction, submission, view)
        case "branch":
            await branches.submit_branch(interaction, submission, view)
        case "say":
            await steering.submit_words(interaction, submission, view)
        case "report":
            await reports.submit_report(interaction, submission, view)
        case name:
            submit = ADDED_BUTTONS[name].submit
            assert submit is not None, "only forms that a feature takes have an action"
            await submit(interaction, submission, view)


def build_view(card: Card) -> ui.View | None:
    """Return the card's buttons as a discord.py view; None for none. Must be called on the event loop."""
    if not card.rows:
        return None
    view = ui.View(timeout=None)
    for row, buttons in enumerate(card.rows):
        for button in buttons:
            view.add_item(JobButton(button, row))
    return view
