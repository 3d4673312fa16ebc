"""*More…* under a grid: for each of its pictures a menu of actions, shown to the presser only.

Stateless: the menu's id holds the picture, and the chosen value the action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import discord
from discord import ui

from bot.discord.cards.button_layout import PICTURE_ACTION_LABELS, Button, picture_action_kinds
from bot.discord.cards.job_cards import NO_PROMPT
from bot.discord.components.picture_actions import PICTURE_ACTIONS, run_picture_action
from bot.discord.components.picture_select import PictureSelect
from bot.discord.responses import NO_MENTIONS, require_permission
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.pictures.moderation_status import is_held

if TYPE_CHECKING:
    from bot.discord.cards.button_layout import ButtonKind
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView

NO_USABLE_PICTURE = "None of its pictures can be used now."


async def open_more_menu(interaction: Interaction, view: JobView) -> None:
    """Show the menus. Raises `UserError` if every picture is held or deleted."""
    usable = [picture.index for picture in view.pictures if not is_held(view.needs_check, picture)]
    if not usable:
        raise UserError(NO_USABLE_PICTURE, 404)
    menus = ui.View(timeout=None)
    for index in usable:
        menus.add_item(PictureMenu(view.id, index, picture_action_kinds(view, index)))
    menus.stop()  # found by their ids, also after a restart
    text = f"Go on from **{escape_discord(view.prompt or NO_PROMPT, 300)}**"
    await interaction.response.send_message(text, view=menus, ephemeral=True, allowed_mentions=NO_MENTIONS)


class PictureMenu(PictureSelect, prefix="onward"):
    """The actions on one picture."""

    def __init__(self, job: str, index: int, kinds: Sequence[ButtonKind] = tuple(PICTURE_ACTION_LABELS)) -> None:
        options = [discord.SelectOption(label=PICTURE_ACTION_LABELS[kind], value=kind) for kind in kinds]
        super().__init__(job, index, f"Picture {index + 1}", options)

    async def handle_choice(self, interaction: Interaction, choice: str) -> None:
        kind: ButtonKind | None = next((press for press in PICTURE_ACTION_LABELS if press == choice), None)
        if kind is None:
            raise UserError("This menu is of another version of the bot. Please open it once more.")
        view = await interaction.client.services.job_views.load_view(self.job)
        await require_permission(interaction, PICTURE_ACTIONS[kind], view)
        await run_picture_action(interaction, Button(kind, self.job, "", self.index), view)
