"""`/queue` and `/cancel`: what runs and waits, why, and how to cancel it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import NO_PROMPT
from bot.discord.channel_visibility import with_channel_privacy
from bot.discord.checks import reply_on_error, require_permission
from bot.discord.declarations import declare
from bot.discord.job_choice import ALL_JOBS, MAX_CHOICE_CHARS, suggest_open_jobs
from bot.discord.responses import member_of, send_ephemeral
from bot.domain import texts
from bot.domain.errors import UserError
from bot.domain.feature import SideWork

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]


@app_commands.command(
    description="Who is before you, and why", extras=declare("queue", help="who is before you, and why")
)
async def queue(interaction: discord.Interaction[DarkroomClient]) -> None:
    async with reply_on_error(interaction):
        member = member_of(interaction)
        queue_views = await interaction.client.services.job_views.load_queue(
            member.guild
        )  # only this server's jobs: no server sees another's prompts
        views = [with_channel_privacy(view, member) for view in queue_views]
        has_own_jobs = any(view.member_id == member.id for view in views)
        hint = f"-# {interaction.client.mention_command('cancel')} cancels one of yours." if has_own_jobs else ""
        await send_ephemeral(interaction, job_cards.render_queue(views, time.time(), hint, member.id))


@app_commands.command(
    description="Cancel one of your jobs, or all of them", extras=declare("cancel", help="cancel a job")
)
@app_commands.describe(job="Choose one, or all; a link, an id or a seed works too")
async def cancel(interaction: discord.Interaction[DarkroomClient], job: Range[str, 1, MAX_CHOICE_CHARS]) -> None:
    async with reply_on_error(interaction):
        if job.strip().casefold() == ALL_JOBS:
            await send_ephemeral(interaction, await _cancel_all(interaction))
            return
        view = await interaction.client.services.history.find_job(job, member_of(interaction))
        member = await require_permission(interaction, "cancel", view)
        text = await interaction.client.services.jobs.cancel(view.id, member)
        is_own = view.member_id == member.id
        is_hidden = with_channel_privacy(view, member).is_private and not is_own
        prompt = "A private job" if is_hidden else texts.escape_discord(view.prompt or NO_PROMPT, 200)
        await send_ephemeral(interaction, f"**{prompt}**\n{text}")


@cancel.autocomplete("job")
async def suggest_jobs(
    interaction: discord.Interaction[DarkroomClient], current: str
) -> list[app_commands.Choice[str]]:
    return await suggest_open_jobs(interaction, current)


async def _cancel_all(interaction: Interaction) -> str:
    """Cancel every open job of the member, and what else is done for them, wherever they asked for it."""
    member = member_of(interaction)
    services = interaction.client.services
    views = await interaction.client.services.history.list_open(member.id)
    cancelled = list(filter(None, (work.cancel(member.id) for work in services.list_all(SideWork))))
    if not views and cancelled:
        return " ".join(cancelled)
    if not views:
        raise UserError("Nothing of yours runs or waits.", 404)
    started_count = 0
    for view in views:
        await services.jobs.cancel(view.id, member)
        started_count += view.started is not None
    tail = (
        f" {started_count} had started: only the steps they ran are charged."
        if started_count
        else " They cost you nothing."
    )
    return " ".join((f"{texts.format_job_count(len(views))} cancelled.{tail}", *cancelled))
