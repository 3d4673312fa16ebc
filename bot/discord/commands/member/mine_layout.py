"""The layout of a `/mine` page: a title, and a few short lines and a thumbnail for each job. Sends nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from discord import ui

from bot.discord.cards.details import STATE_EMOJI, STATE_TITLES
from bot.discord.cards.job_cards import job_title
from bot.discord.cards.notices import message_link
from bot.domain import texts
from bot.domain.job_states import is_end
from bot.domain.texts import escape_discord, shorten

if TYPE_CHECKING:
    from bot.domain.dto import Destination
    from bot.jobs.history import HistoryEntry, HistoryFilter, HistoryPage

FILTER_TITLES: Mapping[HistoryFilter, str] = MappingProxyType(
    {"all": "All", "favourites": "Favourites", "waiting": "Waiting", "unshown": "Not shown"}
)
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
