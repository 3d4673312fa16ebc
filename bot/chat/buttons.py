"""The buttons under a job: stateless, so that they work after any restart and on any process.

All a press needs is in its custom id (`vary:<job>:<index>`); who may press is decided in `interaction_check`.
"""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.access import Action, Subject, forbidden
from bot.chat import decisions
from bot.chat.answer import answer, member_of, refuse, sorry
from bot.chat.presenter import AGAIN_SIGN, Button, Card, Press
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.studio import Studio
    from bot.views import Member, Place, Ticket, View

log = logging.getLogger(__name__)

STYLES = {
    "up": discord.ButtonStyle.secondary,
    "vary": discord.ButtonStyle.primary,
    "reroll": discord.ButtonStyle.secondary,
    "cancel": discord.ButtonStyle.danger,
    "look": discord.ButtonStyle.secondary,
    "approve": discord.ButtonStyle.success,
    "deny": discord.ButtonStyle.danger,
}
ACTIONS: Mapping[Press, Action] = {
    "up": "upscale", "vary": "vary", "reroll": "reroll", "cancel": "cancel",
    "look": "approve", "approve": "approve", "deny": "deny",
}  # fmt: skip
AGAIN = 10.0  # seconds in which a second press of the same button by the same member is a slip of the finger
ID = r"(?P<press>up|vary|reroll|cancel|look|approve|deny):(?P<job>[0-9A-HJKMNP-TV-Z]{26})(?::(?P<index>[0-3]))?"


class Presses:
    """Gives two presses in a row the same idempotency key, so that they make one job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()

    def key(self, custom_id: str, member: str, interaction: str) -> tuple[str, bool]:
        """The key to ask the studio with, and whether this is the first press of its kind."""
        now, pressed = self._clock(), (custom_id, member)
        while self._recent and next(iter(self._recent.values()))[0] <= now - AGAIN:
            self._recent.popitem(last=False)
        first = pressed not in self._recent
        if first:
            self._recent[pressed] = (now, f"press:{interaction}")
        return self._recent[pressed][1], first

    def forget(self, custom_id: str, member: str) -> None:
        """Nothing came of the press: the next one is no slip but another attempt, with a card of its own."""
        self._recent.pop((custom_id, member), None)


def subject_of(view: View) -> Subject:
    """What a press acts on, as the table of who may do what sees it."""
    return Subject(view.member_id, view.member_name, view.guild, view.private)


class JobButton(ui.DynamicItem[ui.Button[ui.View]], template=ID):
    """Any button of any job."""

    def __init__(self, button: Button, row: int | None = None) -> None:
        emoji = AGAIN_SIGN if button.press == "reroll" else None
        label = None if emoji else button.label
        super().__init__(ui.Button(style=STYLES[button.press], label=label, emoji=emoji, custom_id=button.id), row=row)
        self.button = button

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        index = match["index"]
        # the template admits nothing but these words
        press: Press = match["press"]  # pyright: ignore[reportAssignmentType]
        label = getattr(item, "label", None) or AGAIN_SIGN
        return cls(Button(press, match["job"], label, None if index is None else int(index)))

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        try:
            view = await interaction.client.studio.view(self.button.job)
            reason = forbidden(ACTIONS[self.button.press], member_of(interaction), subject_of(view))
        except Refused as refused:
            reason = refused.sentence
        except Exception:
            log.exception("job %s: a press of %s could not be checked", self.button.job, self.button.press)
            await sorry(interaction)
            return False
        if reason:
            await refuse(interaction, reason)
        return reason is None

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        try:
            if self.button.press == "cancel":
                await self._cancel(interaction)
            elif self.button.press == "look":
                await decisions.look(interaction, self.button.job)
            elif self.button.press in ("approve", "deny"):
                await decisions.decide(interaction, self.button, controls)
            else:
                await self._ask(interaction)
        except Exception:
            log.exception("job %s: a press of %s failed", self.button.job, self.button.press)
            await sorry(interaction)

    async def _ask(self, interaction: discord.Interaction[DarkroomClient]) -> None:
        studio, client = interaction.client.studio, interaction.client
        user = str(interaction.user.id)
        made: list[Ticket] = []
        key, first = client.presses.key(self.button.id, user, str(interaction.id))

        async def ask(member: Member, place: Place) -> list[Ticket]:
            made.append(await _asked(studio, self.button, member, place, key))
            return made

        try:
            await answer(interaction, ask, again=not first)
        finally:
            if not made:
                client.presses.forget(self.button.id, user)

    async def _cancel(self, interaction: discord.Interaction[DarkroomClient]) -> None:
        try:
            said = await interaction.client.studio.cancel(self.button.job, member_of(interaction))
        except Refused as refused:
            await refuse(interaction, refused.sentence)
        else:
            await interaction.response.send_message(said, ephemeral=True)


async def _asked(studio: Studio, button: Button, member: Member, place: Place, key: str) -> Ticket:
    if button.press == "reroll" or button.index is None:
        return await studio.reroll(button.job, member, place, key=key)
    if button.press == "vary":
        return await studio.vary(button.job, button.index, member, place, key=key)
    return await studio.upscale(button.job, button.index, member, place, key=key)


def controls(card: Card) -> ui.View | None:
    """The card's buttons as discord.py wants them; None for none. Must be called on the event loop."""
    if not card.rows:
        return None
    view = ui.View(timeout=None)
    for row, buttons in enumerate(card.rows):
        for button in buttons:
            view.add_item(JobButton(button, row))
    return view
