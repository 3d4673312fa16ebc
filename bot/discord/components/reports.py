"""Reports: the form, the thanks, and the card for moderators in the channel that the server's admins chose."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import discord

from bot.discord.cards import button_layout, pictures
from bot.discord.cards.job_cards import NO_PROMPT, Card, message_link
from bot.discord.components.forms import FormSubmission, create_form, form_id, open_form, text_field
from bot.discord.responses import NO_MENTIONS, member_of, send_ephemeral
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.services.moderation.moderation import MAX_REASON

if TYPE_CHECKING:
    from discord import ui

    from bot.discord.client import DarkroomClient, Interaction
    from bot.domain.dto import JobView
    from bot.services.front_end_actions import Report


async def open_report_form(interaction: Interaction, view: JobView) -> None:
    """Ask what is wrong with the picture."""
    await open_form(interaction, build_report_form(view.id))


def build_report_form(job: str) -> ui.Modal:
    """Return the form with its one question."""
    modal = create_form("Report to the moderators", form_id("report", job))
    modal.add_item(
        text_field("reason", "What is wrong with it?", "The moderators of this server read it", max_length=MAX_REASON)
    )
    return modal


async def submit_report(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form."""
    reason = submission.fields.get("reason", "")
    await send_ephemeral(
        interaction,
        await interaction.client.services.moderation.report_picture(view.id, member_of(interaction), reason),
    )


async def post_report(client: DarkroomClient, report: Report) -> bool:
    """Post a report in its channel; return False if that is not of the report's server, whatever a rule says.

    Raises `discord.HTTPException` if Discord rejects it.
    """
    channel = _report_channel(client, report)
    if channel is None:
        return False
    deliveries = await client.services.deliveries.list_deliveries(report.job)
    addresses = (entry.destination.address for entry in deliveries.values() if entry.destination.kind == "discord")
    target: Mapping[str, str] = next(addresses, dict[str, str]())
    report_card = render_report(report, message_link(target))
    await channel.send(
        report_card.content, view=client.build_view(report_card) or discord.utils.MISSING, allowed_mentions=NO_MENTIONS
    )
    return True


def _report_channel(client: DarkroomClient, report: Report) -> discord.abc.Messageable | None:
    guild_id = report.guild.removeprefix("discord:")
    guild = client.get_guild(int(guild_id)) if guild_id.isdecimal() else None
    channel = (
        None if guild is None or not report.channel.isdecimal() else guild.get_channel_or_thread(int(report.channel))
    )
    return channel if isinstance(channel, discord.abc.Messageable) else None


async def show_reported(interaction: Interaction, view: JobView) -> None:
    """Show the public pictures to the moderator only, as spoilers."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    picture = None
    if view.deleted_at is None and view.state == "finished":
        try:
            picture = await pictures.render_picture(
                interaction.client.services.gallery, view, interaction.filesize_limit
            )
        except UserError as error:
            await interaction.edit_original_response(content=escape_discord(error.sentence))
            return
    if picture is None:
        await interaction.edit_original_response(content="There is nothing to show.")
        return
    file = discord.File(io.BytesIO(picture.payload), picture.name, spoiler=True)
    text = f"**{escape_discord(view.prompt or NO_PROMPT, 900)}** · {escape_discord(view.member_name, 64)}"
    await interaction.edit_original_response(content=text, attachments=[file], allowed_mentions=NO_MENTIONS)


async def dismiss_report(interaction: Interaction, incident_id: int) -> None:
    """Close the report: nothing is wrong, or it is dealt with. The card says who dismissed it."""
    incident = await interaction.client.services.moderation.close_incident(incident_id, member_of(interaction))
    assert interaction.message
    text = f"{interaction.message.content}\n-# Dismissed by {escape_discord(interaction.user.display_name, 64)}."
    if incident.closed is not None:
        await interaction.response.edit_message(content=text[:2000], view=None, allowed_mentions=NO_MENTIONS)


def render_report(report: Report, address: str) -> Card:
    """Return a report as moderators see it; `address` is the reported message's, if known."""
    lines = [
        f"🚩 **{escape_discord(report.reporter, 64)}** reported a picture of **{escape_discord(report.author, 64)}**:",
        f"> {escape_discord(report.reason, 900)}",
    ]
    return Card(
        "\n".join([*lines, address] if address else lines), button_layout.build_report_rows(report.job, report.incident)
    )
