"""*More…* under a grid: for each of its pictures a menu of actions, shown to the presser only.

Stateless: the menu's id holds the picture, and the chosen value the action.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.chat.answer import sorry
from bot.chat.called import WORDLESS
from bot.chat.permitted import permit, refusing
from bot.chat.presses.beyond import ACTIONS, go_beyond
from bot.chat.quiet import QUIET
from bot.chat.rows import BEYOND, Button, beyond
from bot.images.held import is_held
from bot.refused import Refused
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.chat.rows import Press
    from bot.views import View

log = logging.getLogger(__name__)

NOTHING = "None of its pictures can be used now."


async def open_more(interaction: discord.Interaction[DarkroomClient], view: View) -> None:
    """Show the menus. Raises `Refused` if every picture is held or deleted."""
    free = [shot.index for shot in view.pictures if not is_held(view.check, shot)]
    if not free:
        raise Refused(NOTHING, 404)
    menus = ui.View(timeout=None)
    for index in free:
        menus.add_item(Menu(view.id, index, beyond(view, index)))
    menus.stop()  # found by their ids, also after a restart
    said = f"Go on from **{quoted(view.prompt or WORDLESS, 300)}**"
    await interaction.response.send_message(said, view=menus, ephemeral=True, allowed_mentions=QUIET)


class Menu(
    ui.DynamicItem[ui.Select[Any]], template=r"onward:(?P<job>[0-9A-HJKMNP-TV-Z]{26}):(?P<index>[0-3])"
):  # fmt: skip
    """The actions on one picture."""

    def __init__(self, job: str, index: int, presses: Sequence[Press] = tuple(BEYOND)) -> None:
        options = [discord.SelectOption(label=BEYOND[press], value=press) for press in presses]
        said = f"Picture {index + 1}"
        super().__init__(ui.Select(placeholder=said, options=options, custom_id=f"onward:{job}:{index}"))
        self.job, self.index = job, index

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(match["job"], int(match["index"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        try:
            async with refusing(interaction):
                chosen = (interaction.data or {}).get("values") or [""]
                press: Press | None = next((press for press in BEYOND if press == chosen[0]), None)
                if press is None:
                    raise Refused("This menu is of another version of the bot. Please open it once more.")
                view = await interaction.client.studio.view(self.job)
                await permit(interaction, ACTIONS[press], view)
                await go_beyond(interaction, Button(press, self.job, "", self.index), view)
        except Exception:
            log.exception("job %s: an action chosen from its menu failed", self.job)
            await sorry(interaction)
