"""The buttons under a job: stateless, so that they work after any restart and in any process.

A custom id (`vary:<job>:<index>`) carries all that a press needs; `interaction_check` decides who may press.
"""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import discord
from discord import ui

from bot.access import Action
from bot.chat.answer import member_of, refuse, sorry
from bot.chat.film import post_film
from bot.chat.permitted import permit, refusing
from bot.chat.presses import beyond, branching, decisions, editing, more, onward, removal, reporting
from bot.chat.presses.forms import Filled, filled
from bot.chat.presses.once import once
from bot.chat.rows import PRESSES, Button, Press
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.chat.presenter import Card
    from bot.views import View

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

GREY, BLUE, RED, GREEN = (
    discord.ButtonStyle.secondary, discord.ButtonStyle.primary, discord.ButtonStyle.danger, discord.ButtonStyle.success,
)  # fmt: skip
STYLES: Mapping[Press, discord.ButtonStyle] = MappingProxyType(
    {"subtle": BLUE, "strong": BLUE, "cancel": RED, "erase": RED, "deny": RED, "approve": GREEN}
)
ACTIONS: Mapping[Press, Action] = MappingProxyType(
    {
        "up": "upscale", "vary": "vary", "subtle": "vary", "strong": "vary", "reroll": "reroll", "remix": "remix",
        "film": "film", "favour": "favourite", "report": "report", "delete": "delete", "erase": "delete",
        "cancel": "cancel", "look": "approve", "approve": "approve", "deny": "deny", "show": "approve",
        "dismiss": "dismiss", "more": "details", "walk": "walk", **beyond.ACTIONS,
    }
)  # fmt: skip
FORMS: Mapping[str, Action] = MappingProxyType(
    {"remix": "remix", "report": "report", "edit": "edit", "branch": "branch"}
)
AGAIN = 10.0  # seconds in which a second press of the same button by the same member is a double click
ID = rf"(?P<press>{'|'.join(PRESSES)}):(?P<job>[0-9A-HJKMNP-TV-Z]{{26}})(?::(?P<index>\d{{1,9}}))?"
LIKED = {True: "❤️ A favourite of yours now: `/mine favourites` has it.", False: "No favourite any more."}


class Presses:
    """Gives a double click one idempotency key, so that it makes one job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()

    def key(self, custom_id: str, member: str, interaction: str) -> tuple[str, bool]:
        """Return the idempotency key, and whether this is the first press."""
        now, pressed = self._clock(), (custom_id, member)
        while self._recent and next(iter(self._recent.values()))[0] <= now - AGAIN:
            self._recent.popitem(last=False)
        first = pressed not in self._recent
        if first:
            self._recent[pressed] = (now, f"press:{interaction}")
        return self._recent[pressed][1], first

    def forget(self, custom_id: str, member: str) -> None:
        """Forget a press that made no job: the next one is another attempt, with its own card."""
        self._recent.pop((custom_id, member), None)


class JobButton(ui.DynamicItem[ui.Button[ui.View]], template=ID):
    """Any button of any job."""

    def __init__(self, button: Button, row: int | None = None) -> None:
        style, label = STYLES.get(button.press, GREY), button.label or None
        item = ui.Button[ui.View](style=style, label=label, emoji=button.sign or None, custom_id=button.id)
        super().__init__(item, row=row)
        self.button = button
        self.view_of: View | None = None  # the job, once it was looked up

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        index = match["index"]
        # the template matches only these
        press: Press = match["press"]  # pyright: ignore[reportAssignmentType]
        label = getattr(item, "label", None) or ""
        return cls(Button(press, match["job"], label, None if index is None else int(index)))

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        try:
            if self.button.press != "dismiss":  # a reported job may have been deleted since
                self.view_of = await interaction.client.studio.view(self.button.job)
            await permit(interaction, ACTIONS[self.button.press], self.view_of)
        except Refused as refused:
            await refuse(interaction, refused.sentence)
        except Exception:
            log.exception("job %s: a press of %s could not be checked", self.button.job, self.button.press)
            await sorry(interaction)
        else:
            return True
        return False

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        try:
            async with refusing(interaction):
                if self.view_of is None:
                    await reporting.dismiss(interaction, self.button.index or 0)
                else:
                    await _do(interaction, self.button, self.view_of)
        except Exception:
            log.exception("job %s: a press of %s failed", self.button.job, self.button.press)
            await sorry(interaction)


async def _do(interaction: Interaction, button: Button, view: View) -> None:
    """Do what the press asks for. Raises `Refused`."""
    match button.press:
        case "cancel":
            said = await interaction.client.studio.cancel(view.id, member_of(interaction))
            await interaction.response.send_message(said, ephemeral=True)
        case "film":
            await post_film(interaction, view)
        case "favour":
            now = await interaction.client.studio.favour(view.id, button.index or 0, member_of(interaction))
            await interaction.response.send_message(LIKED[now], ephemeral=True)
        case "report":
            await reporting.open_report(interaction, view)
        case "show":
            await reporting.show(interaction, view)
        case "delete":
            await removal.confirm(interaction, view)
        case "erase":
            await removal.erase(interaction, view)
        case "look":
            await decisions.look(interaction, view)
        case "approve" | "deny":
            await decisions.decide(interaction, button)
        case "more":
            await more.open_more(interaction, view)
        case "walk":
            between = interaction.client.studio.walk_between
            await once(interaction, button.id, lambda who, place, key: between(view.id, who, place, key=key))
        case _ if button.press in beyond.ACTIONS:
            await beyond.go_beyond(interaction, button, view)
        case _:
            await onward.go_on(interaction, button, view)


async def submitted(interaction: Interaction) -> None:
    """Handle a submitted form about a job, also after a restart, with the check of its button; ignore other
    interactions.
    """
    form = filled(interaction)
    if form is None or form.form not in FORMS:
        return
    try:
        async with refusing(interaction):
            view = await interaction.client.studio.view(form.job)
            await permit(interaction, FORMS[form.form], view)
            await _take(interaction, form, view)
    except Exception:
        log.exception("job %s: the form %s failed", form.job, form.form)
        await sorry(interaction)


async def _take(interaction: Interaction, form: Filled, view: View) -> None:
    match form.form:
        case "remix":
            await onward.remix(interaction, form, view)
        case "edit":
            await editing.edit(interaction, form, view)
        case "branch":
            await branching.branch(interaction, form, view)
        case _:
            await reporting.report(interaction, form, view)


def controls(card: Card) -> ui.View | None:
    """Return the card's buttons as a discord.py view; None for none. Must be called on the event loop."""
    if not card.rows:
        return None
    view = ui.View(timeout=None)
    for row, buttons in enumerate(card.rows):
        for button in buttons:
            view.add_item(JobButton(button, row))
    return view
