"""Base of the menus for one picture of a job. Stateless: the menu's id holds the picture."""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import discord
from discord import ui

from bot.discord.responses import report_errors

if TYPE_CHECKING:
    from bot.discord.client import Interaction

log = logging.getLogger(__name__)


class PictureSelect(ui.DynamicItem[ui.Select[Any]], template=""):
    """A select with the custom id `prefix:job:index`. Job and index alone must make one, too: a press has no more."""

    _prefix: ClassVar[str]

    def __init_subclass__(cls, *, prefix: str) -> None:
        super().__init_subclass__(template=rf"{prefix}:(?P<job>[0-9A-HJKMNP-TV-Z]{{26}}):(?P<index>[0-3])")
        cls._prefix = prefix

    def __init__(
        self, job: str, index: int, placeholder: str = "", options: Sequence[discord.SelectOption] = ()
    ) -> None:
        custom_id = f"{self._prefix}:{job}:{index}"
        super().__init__(ui.Select(placeholder=placeholder, options=list(options), custom_id=custom_id))
        self.job = job
        self.index = index

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(match["job"], int(match["index"]))

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "job %s: a choice of its menu %s failed", self.job, self._prefix):
            await self.handle_choice(interaction, str(((interaction.data or {}).get("values") or [""])[0]))

    @abstractmethod
    async def handle_choice(self, interaction: Interaction, choice: str) -> None:
        """Do what the chosen value means. Raises `UserError`."""
