"""`/mine`: a member's own jobs over all servers, five a page with thumbnails, shown to them only.

Stateless: a button's id holds the page that it leads to; it always shows the presser's own jobs. Held pictures are
blurred.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, get_args

import discord
from discord import app_commands, ui

from bot.discord.cards import job_cards, pictures
from bot.discord.cards.job_cards import STATE_EMOJI, STATE_TITLES, job_title, message_link
from bot.discord.cards.pictures import to_discord_file
from bot.discord.declarations import declare
from bot.discord.job_choice import job_label
from bot.discord.responses import NO_MENTIONS, member_of, reply_on_error, report_errors, require_permission
from bot.domain import texts
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.domain.texts import escape_discord, shorten
from bot.jobs.history import HistoryFilter
from bot.pictures import grid
from bot.pictures.image_codec import UnreadableImage, decode_image, encode_image, resize_image
from engine.contract import Recipe

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import Destination, JobView
    from bot.jobs.history import HistoryEntry, HistoryPage
    from bot.pictures.gallery import Gallery


log = logging.getLogger(__name__)

FILTER_TITLES: Mapping[HistoryFilter, str] = MappingProxyType(
    {"all": "All", "favourites": "Favourites", "waiting": "Waiting", "unshown": "Not shown"}
)


FILTER_CHOICES = [
    app_commands.Choice(name=app_commands.locale_str(name), value=job_filter)
    for job_filter, name in FILTER_TITLES.items()
]


@app_commands.command(
    description="Your own pictures and jobs, from every server; only you see them",
    extras=declare("mine", help="your pictures"),
)
@app_commands.describe(which="Which jobs; all by default", page="Which page, five jobs each; the newest first")
@app_commands.choices(which=FILTER_CHOICES)
async def mine(interaction: Interaction, which: str = "all", page: app_commands.Range[int, 1, 100_000] = 1) -> None:
    async with reply_on_error(interaction):
        await interaction.response.defer(ephemeral=True, thinking=True)
        await _show_page(interaction, _parse_filter(which), page)


async def _show_page(interaction: Interaction, job_filter: HistoryFilter, page_number: int) -> None:
    """Put a page into the deferred response."""
    services = interaction.client.services
    now = time.time()
    member = member_of(interaction)
    page = await services.history.load_page(member.id, job_filter, page_number, member.thread)
    pictures = {entry.view.id: await render_thumbnail(services.gallery, entry.view) for entry in page.entries}
    thumbnails = {job: jpeg for job, jpeg in pictures.items() if jpeg}
    await interaction.edit_original_response(
        view=MineLayout(page, thumbnails.keys(), _navigation_rows(page, now)),
        attachments=[discord.File(io.BytesIO(jpeg), f"{job}.jpg") for job, jpeg in thumbnails.items()],
        allowed_mentions=NO_MENTIONS,
    )


def _navigation_rows(page: HistoryPage, now: float) -> list[list[ui.Item[Any]]]:
    """Return the rows below a page: a select of its jobs, the filters, the pages before and after."""
    rows: list[list[ui.Item[Any]]] = []
    if page.entries:
        rows.append([JobSelect([(entry.view.id, job_label(entry.view, now=now)) for entry in page.entries])])
    rows.append([PageButton(each, 1, "f", is_current=page.filter_name == each) for each in FILTER_TITLES])
    if page.page_count > 1:
        number = page.number
        newer = PageButton(page.filter_name, max(1, number - 1), "n", is_current=number == 1)
        last = page.page_count
        older = PageButton(page.filter_name, min(last, number + 1), "o", is_current=number == last)
        rows.append([newer, older])
    return rows


class PageButton(ui.DynamicItem[ui.Button[Any]], template=r"mine:(?P<which>[a-z]+):(?P<number>\d{1,6}):(?P<way>[fno])"):
    """A button to another page or filter."""

    def __init__(
        self, job_filter: HistoryFilter, page_number: int, direction: str, *, is_current: bool = False
    ) -> None:
        name = {"n": "← Newer", "o": "Older →"}.get(direction) or FILTER_TITLES[job_filter]
        style = discord.ButtonStyle.primary if is_current and direction == "f" else discord.ButtonStyle.secondary
        super().__init__(
            ui.Button(
                label=name, style=style, disabled=is_current, custom_id=f"mine:{job_filter}:{page_number}:{direction}"
            )
        )
        self.job_filter: HistoryFilter = job_filter
        self.page_number = page_number

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        return cls(_parse_filter(match["which"]), int(match["number"]), match["way"])

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        async with report_errors(interaction, log, "a press in /mine failed"):
            await require_permission(interaction, "mine")
            await interaction.response.defer()
            await _show_page(interaction, self.job_filter, self.page_number)


class JobSelect(ui.DynamicItem[ui.Select[Any]], template=r"mine:show"):
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
        async with report_errors(interaction, log, "a press in /mine failed"):
            view = await interaction.client.services.job_views.load_view(self.item.values[0])
            await require_permission(interaction, "details", view)
            await interaction.response.defer(ephemeral=True, thinking=True)
            await _show_job(interaction, view)


async def _show_job(interaction: Interaction, view: JobView) -> None:
    """Show a job's card to the member only, as its own message would."""
    now = time.time()
    picture = None
    if is_end(view.state):
        card, picture = await pictures.render_final(
            interaction.client.services.gallery, view, interaction.filesize_limit
        )
    elif view.state == "queued":
        card = job_cards.render_waiting(view, view.jobs_ahead or 0, view.eta, now)
    else:
        card = job_cards.render_progress(view, view.step, view.total_steps, view.eta or 0.0, now)
    files = [to_discord_file(card, picture)] if picture else []
    await interaction.edit_original_response(
        content=card.content, view=interaction.client.build_view(card), attachments=files, allowed_mentions=NO_MENTIONS
    )


def _parse_filter(text: str) -> HistoryFilter:
    return next((candidate for candidate in get_args(HistoryFilter) if candidate == text), "all")


EMPTY_TEXTS: Mapping[HistoryFilter, str] = MappingProxyType(
    {
        "all": "You have made nothing yet.",
        "favourites": "No picture is a favourite of yours yet.",
        "waiting": "Nothing of yours runs or waits.",
        "unshown": "All your pictures were shown where you asked for them.",
    }
)
COLOUR = 0x5B6EE1


class MineLayout(ui.LayoutView):
    """One page: a title, a section for each job, and rows that lead to other pages."""

    def __init__(
        self, page: HistoryPage, thumbnail_ids: Collection[str], navigation_rows: Sequence[Sequence[ui.Item[Any]]]
    ) -> None:
        super().__init__(timeout=None)
        container: ui.Container[MineLayout] = ui.Container(accent_colour=COLOUR)
        container.add_item(ui.TextDisplay(_render_title(page)))
        for entry in page.entries:
            container.add_item(ui.Separator())
            container.add_item(_build_section(entry, entry.view.id in thumbnail_ids))
        self.add_item(container)
        for row in navigation_rows:
            self.add_item(ui.ActionRow(*row))


def _render_title(page: HistoryPage) -> str:
    if not page.job_count:
        return f"### Yours\n{EMPTY_TEXTS[page.filter_name]}"
    pages = f" · page {page.number} of {page.page_count}" if page.page_count > 1 else ""
    return f"### Yours\n-# {FILTER_TITLES[page.filter_name]}: {texts.format_job_count(page.job_count)}{pages}"


def _build_section(entry: HistoryEntry, has_thumbnail: bool) -> ui.Item[Any]:
    text: ui.TextDisplay[Any] = ui.TextDisplay(render_entry(entry))
    if not has_thumbnail:
        return text
    alt = shorten(entry.view.prompt, 256)
    return ui.Section(text, accessory=ui.Thumbnail(f"attachment://{entry.view.id}.jpg", description=alt))


def render_entry(entry: HistoryEntry) -> str:
    """Return a job in a few short lines: a phone shows some thirty characters beside the picture."""
    view = entry.view
    state = "" if view.state == "finished" else f" {STATE_TITLES.get(view.state, view.state)}"
    if view.state in ("running", "sent"):
        state += f" {texts.percent_done(view.step, view.total_steps)} %"
    facts = [f"{STATE_EMOJI[view.state]}{state}", f"<t:{round(view.finished or view.created)}:R>"]
    if view.state == "finished":
        facts = [" ".join(facts)]
    if not entry.reason and (address := _message_address(entry.destination, view.is_private)):
        facts.append(f"[open]({address})")
    if entry.favourites:
        facts.append("★" + " ".join(str(index + 1) for index in entry.favourites))
    if view.is_private:
        facts.append("private")
    lines = [f"**{escape_discord(job_title(view.prompt), 140)}**", " · ".join(facts)]
    if view.state == "queued" and view.wait_reason:
        lines.append(f"-# {escape_discord(view.wait_reason, 120)}")
    if view.deleted_at is not None:
        lines.append("-# Its pictures were deleted.")
    elif entry.reason:
        lines.append(f"-# Not shown where you asked: {escape_discord(entry.reason, 200)}")
    elif is_end(view.state) and view.state != "finished" and view.reason:
        lines.append(f"-# {escape_discord(view.reason, 160)}")
    return "\n".join(lines)


def _message_address(destination: Destination | None, private: bool) -> str:
    """Return the message's address; empty for a private one in a server, which is ephemeral."""
    if destination is None or destination.kind != "discord" or (private and destination.address.get("guild")):
        return ""
    return message_link(destination.address)


MAX_SIDE = 320  # pixels on the longer side: a phone shows it smaller


async def render_thumbnail(gallery: Gallery, view: JobView) -> bytes | None:
    """Return a JPEG, or None if there is nothing to show."""
    if view.state != "finished" or view.deleted_at is not None:
        return None
    try:
        pictures = [await gallery.read_for_members(view.id, picture.index) for picture in view.pictures]
        return await asyncio.to_thread(_shrink, pictures, isinstance(view.task, Recipe)) if pictures else None
    except (UserError, UnreadableImage) as error:
        log.warning("job %s: it has no thumbnail: %s", view.id, error)
        return None


def _shrink(pictures: Sequence[bytes], as_grid: bool) -> bytes:
    image = (
        grid.compose_images([decode_image(payload) for payload in pictures], MAX_SIDE // 2)
        if as_grid
        else decode_image(pictures[0])
    )
    scale = min(1.0, MAX_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return encode_image(resize_image(image, size), "JPEG", 82)
