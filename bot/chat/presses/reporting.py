"""Reports: the form, the thanks, and the card for moderators in the channel that the server's admins chose."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import discord

from bot.chat import delivery, rows
from bot.chat.answer import member_of, say
from bot.chat.called import WORDLESS
from bot.chat.notices import link
from bot.chat.presenter import Card
from bot.chat.presses.forms import Filled, form, line, named, open_form
from bot.chat.quiet import QUIET
from bot.desk.moderation import REASON
from bot.refused import Refused
from bot.sentences import quoted

if TYPE_CHECKING:
    from discord import ui

    from bot.chat.client import DarkroomClient
    from bot.desk.moderation import Report
    from bot.views import View

    Interaction = discord.Interaction[DarkroomClient]


async def open_report(interaction: Interaction, view: View) -> None:
    """Ask what is wrong with the picture."""
    await open_form(interaction, report_form(view.id))


def report_form(job: str) -> ui.Modal:
    """Return the form with its one question."""
    modal = form("Report to the moderators", named("report", job))
    modal.add_item(line("reason", "What is wrong with it?", "The moderators of this server read it", most=REASON))
    return modal


async def report(interaction: Interaction, filled: Filled, view: View) -> None:
    """Submit the form."""
    reason = filled.fields.get("reason", "")
    await say(interaction, await interaction.client.desk.moderation.report(view.id, member_of(interaction), reason))


async def post(client: DarkroomClient, one: Report) -> bool:
    """Post a report in its channel; return False if that is not of the report's server, whatever a rule says.

    Raises `discord.HTTPException` if Discord rejects it.
    """
    channel = _channel(client, one)
    if channel is None:
        return False
    places = await client.desk.deliveries.of(one.job)
    where = next((place.place.where for place in places.values() if place.place.kind == "discord"), {})
    shown = card(one, link(where))
    await channel.send(shown.content, view=client.controls(shown) or discord.utils.MISSING, allowed_mentions=QUIET)
    return True


def _channel(client: DarkroomClient, one: Report) -> discord.abc.Messageable | None:
    number = one.guild.removeprefix("discord:")
    guild = client.get_guild(int(number)) if number.isdecimal() else None
    channel = None if guild is None or not one.channel.isdecimal() else guild.get_channel_or_thread(int(one.channel))
    return channel if isinstance(channel, discord.abc.Messageable) else None


async def show(interaction: Interaction, view: View) -> None:
    """Show the public pictures to the moderator only, as spoilers."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    picture = None
    if view.deleted is None and view.state == "finished":
        try:
            picture = await delivery.final(interaction.client.studio, view, interaction.filesize_limit)
        except Refused as refused:
            await interaction.edit_original_response(content=quoted(refused.sentence))
            return
    if picture is None:
        await interaction.edit_original_response(content="There is nothing to show.")
        return
    file = discord.File(io.BytesIO(picture.payload), picture.name, spoiler=True)
    said = f"**{quoted(view.prompt or WORDLESS, 900)}** · {quoted(view.member_name, 64)}"
    await interaction.edit_original_response(content=said, attachments=[file], allowed_mentions=QUIET)


async def dismiss(interaction: Interaction, number: int) -> None:
    """Close the report: nothing is wrong, or it is dealt with. The card says who dismissed it."""
    incident = await interaction.client.desk.moderation.close(number, member_of(interaction))
    assert interaction.message
    text = f"{interaction.message.content}\n-# Dismissed by {quoted(interaction.user.display_name, 64)}."
    if incident.closed is not None:
        await interaction.response.edit_message(content=text[:2000], view=None, allowed_mentions=QUIET)


def card(one: Report, address: str) -> Card:
    """Return a report as moderators see it; `address` is the reported message's, if known."""
    lines = [
        f"🚩 **{quoted(one.reporter, 64)}** reported a picture of **{quoted(one.author, 64)}**:",
        f"> {quoted(one.reason, 900)}",
    ]
    return Card("\n".join([*lines, address] if address else lines), rows.reported(one.job, one.incident))
