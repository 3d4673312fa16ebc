"""Incidents for moderators: refused words, reports, held pictures, deletions; page by page, closed one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from discord import ui

from bot.discord.responses import message_link
from bot.discord.settings import cards, ui_parts
from bot.discord.settings.responses import Reply, respond
from bot.domain.errors import UserError
from bot.domain.incidents import Incident, incident_sentence
from bot.domain.texts import escape_discord

if TYPE_CHECKING:
    from bot.discord.settings.responses import CardPress, Interaction
    from bot.domain.dto import Member

# incidents on a page, in all; characters of one
INCIDENTS_PER_PAGE = 5
MAX_INCIDENTS = 500
TEXT_LENGTH = 400
WAITING = "waiting"
ALL = "all"


async def show_incidents(interaction: Interaction, list_name: str = WAITING, page: int = 0) -> None:
    """Show the incidents that wait for a moderator, or all."""
    await respond(interaction, "settings", lambda member: _load_list(interaction, member, list_name, page))


async def show_page(interaction: Interaction, press: CardPress) -> None:
    """Show another page, or the other list."""
    await show_incidents(interaction, ALL if press.parts[:1] == (ALL,) else WAITING, press.number_at())


async def close_incident(interaction: Interaction, press: CardPress) -> None:
    """Close an incident; the list stays."""

    async def build_reply(member: Member) -> Reply:
        incident = await interaction.client.services.moderation.close_incident(press.number_at(0), member)
        notice = cards.build_notice(f"✅ No. {incident.number} is closed.")
        list_name = ALL if press.parts[1:2] == (ALL,) else WAITING
        return await _load_list(interaction, member, list_name, press.number_at(), notice)

    await respond(interaction, "settings", build_reply)


async def _load_list(
    interaction: Interaction, member: Member, list_name: str, page: int, notice: Sequence[ui.Item[Any]] = ()
) -> Reply:
    incidents = await interaction.client.services.moderation.list_incidents(
        member, MAX_INCIDENTS, undecided_only=list_name == WAITING
    )
    pages = max(1, -(-len(incidents) // INCIDENTS_PER_PAGE))
    page = max(0, min(page, pages - 1))
    page_incidents = incidents[page * INCIDENTS_PER_PAGE : (page + 1) * INCIDENTS_PER_PAGE]
    links = {incident.job: await _job_link(interaction, incident.job) for incident in page_incidents if incident.job}
    return Reply(view=build_incident_list(page_incidents, links, list_name, page, pages, notice))


async def _job_link(interaction: Interaction, job: str) -> str:
    """Return where a job is shown; empty if it is shown nowhere any more."""
    try:
        return message_link((await interaction.client.services.deliveries.answer_destination(job)).address)
    except UserError:
        return ""


def build_incident_list(
    page_incidents: Sequence[Incident],
    links: Mapping[str, str],
    list_name: str,
    page: int,
    pages: int,
    notice: Sequence[ui.Item[Any]] = (),
) -> ui.LayoutView:
    """Return one page; an incident that waits for a moderator has a button to close it."""
    items: list[ui.Item[Any]] = [
        *notice,
        ui_parts.make_text("## Waiting for a moderator" if list_name == WAITING else "## Incidents"),
    ]
    if not page_incidents:
        items.append(ui_parts.make_text("Nothing waits." if list_name == WAITING else "Nothing yet."))
    for incident in page_incidents:
        text = format_entry(incident, links.get(incident.job, ""))
        close_button = ui_parts.make_button("Close", "shut", incident.number, list_name, page)
        items.append(
            ui_parts.text_with_button(text, close_button) if incident.is_undecided else ui_parts.make_text(text)
        )
    items += ui_parts.make_pager("incidents", list_name, page=page, pages=pages)
    other_list = ("Show all", ALL) if list_name == WAITING else ("Only what waits", WAITING)
    items.append(ui_parts.make_row(ui_parts.make_button(other_list[0], "incidents", other_list[1], 0)))
    return ui_parts.make_layout(*items, colour=cards.BLUE)


def format_entry(incident: Incident, job_link: str) -> str:
    """Return an incident, when it was, and where the picture is."""
    link_text = f" · {job_link}" if job_link else ""
    return (
        f"**{incident.number}.** {escape_discord(incident_sentence(incident), TEXT_LENGTH)}\n-# "
        f"<t:{round(incident.created_at)}:R>{link_text}"
    )
