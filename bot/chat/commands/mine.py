"""`/mine`: a member's own jobs over all servers, five a page, shown to them only.

Stateless: a button's id holds the page that it leads to, and shows always the presser's own jobs.
"""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self, get_args

import discord
from discord import app_commands, ui

from bot.chat import delivery, presenter
from bot.chat.answer import member_of, sorry
from bot.chat.attached import attached
from bot.chat.commands.sheet import FILTERS, Sheet
from bot.chat.commands.thumbnail import thumbnail
from bot.chat.permitted import permit, refusing
from bot.chat.quiet import QUIET
from bot.chat.which import label
from bot.desk.shelf import Which
from bot.states import over

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.desk.shelf import Page
    from bot.views import View

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

CHOICES = [app_commands.Choice(name=app_commands.locale_str(name), value=which) for which, name in FILTERS.items()]


@app_commands.command(description="Your own pictures and jobs, from every server; only you see them")
@app_commands.describe(which="Which jobs; all by default", page="Which page, five jobs each; the newest first")
@app_commands.choices(which=CHOICES)
async def mine(
    interaction: discord.Interaction[DarkroomClient],
    which: str = "all",
    page: app_commands.Range[int, 1, 100_000] = 1,
) -> None:
    async with refusing(interaction):
        await interaction.response.defer(ephemeral=True, thinking=True)
        await _show(interaction, _filter(which), page)


async def _show(interaction: Interaction, which: Which, number: int) -> None:
    """Put a page into the deferred response."""
    desk, now = interaction.client.desk, time.time()
    page = await desk.shelf.page(member_of(interaction).id, which, number)
    pictures = {kept.view.id: await thumbnail(desk.studio, kept.view) for kept in page.kept}
    small = {job: made for job, made in pictures.items() if made}
    await interaction.edit_original_response(
        view=Sheet(page, small.keys(), _ways(page, now)),
        attachments=[discord.File(io.BytesIO(made), f"{job}.jpg") for job, made in small.items()],
        allowed_mentions=QUIET,
    )


def _ways(page: Page, now: float) -> list[list[ui.Item[Any]]]:
    """Return the rows below a page: a select of its jobs, the filters, the pages before and after."""
    rows: list[list[ui.Item[Any]]] = [[Chosen([(kept.view.id, label(kept.view, now=now)) for kept in page.kept])]]
    rows.append([Turn(which, 1, "f", here=page.which == which) for which in FILTERS])
    newer = Turn(page.which, max(1, page.number - 1), "n", here=page.number == 1)
    older = Turn(page.which, min(page.of, page.number + 1), "o", here=page.number == page.of)
    rows.append([newer, older])
    return [row for row, wanted in zip(rows, (page.kept, True, page.of > 1), strict=True) if wanted]


class Turn(ui.DynamicItem[ui.Button[Any]], template=r"mine:(?P<which>[a-z]+):(?P<number>\d{1,6}):(?P<way>[fno])"):
    """A button to another page or filter."""

    def __init__(self, which: Which, number: int, way: str, *, here: bool = False) -> None:
        name = {"n": "← Newer", "o": "Older →"}.get(way) or FILTERS[which]
        style = discord.ButtonStyle.primary if here and way == "f" else discord.ButtonStyle.secondary
        super().__init__(ui.Button(label=name, style=style, disabled=here, custom_id=f"mine:{which}:{number}:{way}"))
        self.which: Which = which
        self.number = number

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(_filter(match["which"]), int(match["number"]), match["way"])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async def turn() -> None:
            await permit(interaction, "mine")
            await interaction.response.defer()
            await _show(interaction, self.which, self.number)

        await _said(interaction, turn)


class Chosen(ui.DynamicItem[ui.Select[Any]], template=r"mine:show"):
    """A select of the page's jobs, to show one here with its buttons."""

    def __init__(self, jobs: list[tuple[str, str]]) -> None:
        options = [discord.SelectOption(label=name, value=job) for job, name in jobs]
        super().__init__(ui.Select(placeholder="Show one here", options=options, custom_id="mine:show"))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls([])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async def show() -> None:
            view = await interaction.client.studio.view(self.item.values[0])
            await permit(interaction, "details", view)
            await interaction.response.defer(ephemeral=True, thinking=True)
            await _show_job(interaction, view)

        await _said(interaction, show)


async def _show_job(interaction: Interaction, view: View) -> None:
    """Show a job's card to the member only, as its own message would."""
    now, picture = time.time(), None
    if over(view.state):
        card, picture = await delivery.ending(interaction.client.studio, view, interaction.filesize_limit)
    elif view.state == "queued":
        card = presenter.waiting(view, view.ahead or 0, view.eta, now)
    else:
        card = presenter.developing(view, view.step, view.of, view.eta or 0.0, now)
    files = [attached(card, picture)] if picture else []
    await interaction.edit_original_response(
        content=card.content, view=interaction.client.controls(card), attachments=files, allowed_mentions=QUIET
    )


async def _said(interaction: Interaction, act: Callable[[], Awaitable[None]]) -> None:
    """Run `act` and tell the member what fails: buttons have no command tree that does."""
    try:
        async with refusing(interaction):
            await act()
    except Exception:
        log.exception("a press in /mine failed")
        await sorry(interaction)


def _filter(text: str) -> Which:
    return next((which for which in get_args(Which) if which == text), "all")
