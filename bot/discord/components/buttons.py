"""The buttons and menus under a job: stateless, so that they work after any restart and in any process.

A custom id (`vary:<job>:<index>`) carries all that a press needs; `interaction_check` decides who may press. `BUTTONS`
has one row for each kind: its permission, what a press and a submitted form do, and its style.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.discord.cards.button_layout import PICTURE_ACTION_LABELS, Button, picture_action_kinds
from bot.discord.cards.job_cards import NO_PROMPT
from bot.discord.components import branches, deletion, review_buttons, steering
from bot.discord.components import picture_actions as pictures
from bot.discord.components.forms import PictureSelect, parse_submission
from bot.discord.declarations import ButtonDeclaration, load_feature_buttons
from bot.discord.film import send_film
from bot.discord.responses import NO_MENTIONS, member_of, report_errors, require_permission, send_error, send_refusal
from bot.domain.errors import UserError
from bot.domain.feature import merge_rows
from bot.domain.texts import escape_discord
from bot.pictures.moderation_status import is_held

if TYPE_CHECKING:
    from bot.discord.cards.job_cards import Card
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView

log = logging.getLogger(__name__)

FAVOURITE_TEXTS = {True: "❤️ A favourite of yours now: `/mine favourites` has it.", False: "No favourite any more."}
NO_USABLE_PICTURE = "None of its pictures can be used now."


async def _cancel(interaction: Interaction, view: JobView) -> None:
    text = await interaction.client.services.job_control.cancel(view.id, member_of(interaction))
    await interaction.response.send_message(text, ephemeral=True)


async def _toggle_favourite(interaction: Interaction, button: Button, view: JobView) -> None:
    gallery = interaction.client.services.gallery
    is_favourite = await gallery.toggle_favourite(view.id, button.index or 0, member_of(interaction).id)
    await interaction.response.send_message(FAVOURITE_TEXTS[is_favourite], ephemeral=True)


async def _submit_of_whole_job(interaction: Interaction, button: Button, view: JobView) -> None:
    """Submit what comes of all pictures of a job: a finished draft, or a walk. Raises `UserError`."""
    variations = interaction.client.services.variations
    submit = variations.finish if button.kind == "finish" else variations.interpolate_pictures
    await pictures.submit_once(
        interaction, button.custom_id, lambda member, destination, key: submit(view.id, member, destination, key=key)
    )


async def _open_more_menu(interaction: Interaction, view: JobView) -> None:
    """Show a menu of actions for each picture. Raises `UserError` if every picture is held or deleted."""
    usable = [picture.index for picture in view.pictures if not is_held(view.needs_check, picture)]
    if not usable:
        raise UserError(NO_USABLE_PICTURE, 404)
    menus = ui.View(timeout=None)
    for index in usable:
        menus.add_item(PictureMenu(view.id, index, picture_action_kinds(view, index)))
    menus.stop()  # found by their ids, also after a restart
    text = f"Go on from **{escape_discord(view.prompt or NO_PROMPT, 300)}**"
    await interaction.response.send_message(text, view=menus, ephemeral=True, allowed_mentions=NO_MENTIONS)


def _of_job(
    act: Callable[[Interaction, JobView], Awaitable[None]],
) -> Callable[[Interaction, Button, JobView], Awaitable[None]]:
    """Return a press that needs the job alone."""
    return lambda interaction, _button, view: act(interaction, view)


Row = ButtonDeclaration
BLUE = discord.ButtonStyle.primary
RED = discord.ButtonStyle.danger
GREEN = discord.ButtonStyle.success
CORE_BUTTONS = (
    Row("up", "upscale", pictures.run_variation),
    Row("vary", "vary", pictures.run_variation),
    Row("subtle", "vary", pictures.run_variation, style=BLUE),
    Row("strong", "vary", pictures.run_variation, style=BLUE),
    Row("reroll", "reroll", pictures.run_variation),
    Row("remix", "remix", pictures.run_variation, pictures.submit_remix),
    Row("film", "film", _of_job(send_film)),
    Row("favour", "favourite", _toggle_favourite),
    Row("report", "report", _of_job(review_buttons.open_report_form), review_buttons.submit_report),
    Row("delete", "delete", _of_job(deletion.send_confirmation)),
    Row("erase", "delete", _of_job(deletion.delete_confirmed), style=RED),
    Row("cancel", "cancel", _of_job(_cancel), style=RED),
    Row("look", "approve", _of_job(review_buttons.show_held_pictures)),
    Row("approve", "approve", review_buttons.decide_picture, style=GREEN),
    Row("deny", "deny", review_buttons.decide_picture, style=RED),
    Row("show", "approve", _of_job(review_buttons.show_reported)),
    Row("dismiss", "dismiss", review_buttons.dismiss_report),
    Row("more", "details", _of_job(_open_more_menu)),
    Row("walk", "walk", _submit_of_whole_job),
    Row("finish", "finish", _submit_of_whole_job, style=GREEN),
    Row("zoomsome", "zoom", pictures.submit_reshaped),
    Row("zoomtwice", "zoom", pictures.submit_reshaped),
    Row("square", "zoom", pictures.submit_reshaped),
    Row("panleft", "pan", pictures.submit_reshaped),
    Row("panright", "pan", pictures.submit_reshaped),
    Row("panup", "pan", pictures.submit_reshaped),
    Row("pandown", "pan", pictures.submit_reshaped),
    Row("edit", "edit", pictures.open_edit_form, pictures.submit_edit),
    Row("branch", "branch", branches.open_keyframe_menu, branches.submit_branch),
    Row("compare", "details", pictures.send_comparison),
    Row("keep", "steer", _of_job(steering.open_keep_menu)),
    Row("say", "steer", _of_job(steering.open_say_form), steering.submit_words),
    Row("again", "reproduce", steering.submit_again),
)
BUTTONS = merge_rows({row.kind: row for row in CORE_BUTTONS}, load_feature_buttons())
CUSTOM_ID = rf"(?P<press>{'|'.join(BUTTONS)}):(?P<job>[0-9A-HJKMNP-TV-Z]{{26}})(?::(?P<index>\d{{1,9}}))?"


class JobButton(ui.DynamicItem[ui.Button[ui.View]], template=CUSTOM_ID):
    """Any button of any job."""

    def __init__(self, button: Button, row: int | None = None) -> None:
        style = BUTTONS[button.kind].style
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
            await require_permission(interaction, BUTTONS[self.button.kind].action, self.job_view)
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
            await BUTTONS[self.button.kind].press(interaction, self.button, self.job_view)


class PictureMenu(PictureSelect, prefix="onward"):
    """The actions on one picture."""

    def __init__(self, job: str, index: int, kinds: Sequence[str] = tuple(PICTURE_ACTION_LABELS)) -> None:
        options = [discord.SelectOption(label=PICTURE_ACTION_LABELS[kind], value=kind) for kind in kinds]
        super().__init__(job, index, f"Picture {index + 1}", options)

    async def handle_choice(self, interaction: Interaction, choice: str) -> None:
        if choice not in PICTURE_ACTION_LABELS:
            raise UserError("This menu is of another version of the bot. Please open it once more.")
        view = await interaction.client.services.job_views.load_view(self.job)
        await require_permission(interaction, BUTTONS[choice].action, view)
        await BUTTONS[choice].press(interaction, Button(choice, self.job, "", self.index), view)


async def handle_job_form(interaction: Interaction) -> None:
    """Handle a submitted form about a job, also after a restart, with the check of its button; ignore other
    interactions.
    """
    submission = parse_submission(interaction)
    row = BUTTONS.get(submission.form_name) if submission else None
    if submission is None or row is None or row.submit is None:
        return
    async with report_errors(interaction, log, "job %s: the form %s failed", submission.job, submission.form_name):
        view = await interaction.client.services.job_views.load_view(submission.job)
        await require_permission(interaction, row.action, view)
        await row.submit(interaction, submission, view)


def build_view(card: Card) -> ui.View | None:
    """Return the card's buttons as a discord.py view; None for none. Must be called on the event loop."""
    if not card.rows:
        return None
    view = ui.View(timeout=None)
    for row, buttons in enumerate(card.rows):
        for button in buttons:
            view.add_item(JobButton(button, row))
    return view
