"""`/party`: members of a channel steer one picture together; `/say`: what it should show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.checks import reply_on_error, require_permission
from bot.discord.declarations import declare
from bot.discord.responses import member_of, respond_with_jobs, send_ephemeral
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.services.parties.party_service import MAX_SAID

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import AcceptedJob, Destination, Member

LONGEST_PARTY = 60  # minutes that Discord offers; the rules allow fewer
MENTION = re.compile(r"<@!?([0-9]{15,20})>")
NO_MENTIONS_GIVEN = "Name the members as mentions, like @ann @bob; without any, everybody here may take part."


@app_commands.command(
    description="Steer one picture together: all who are here say and vote what it shows",
    extras=declare("party", help="steer one together: {say}, 👍, 👎", rate="imagine"),
)
@app_commands.describe(
    prompt="What to begin with. Flags like --ar 3:2 work here too",
    minutes="How long the picture develops",
    members="Mentions of those who may take part; everybody here by default",
)
@app_commands.guild_only()
async def party(
    interaction: discord.Interaction[DarkroomClient],
    prompt: Range[str, 1, 2000],
    minutes: Range[int, 1, LONGEST_PARTY] | None = None,
    members: Range[str, 1, 2000] | None = None,
) -> None:
    async with reply_on_error(interaction):
        invited = parse_mentions(members or "")

        async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
            return await interaction.client.services.parties.open_party(
                prompt,
                member,
                destination,
                place=str(interaction.channel_id),
                minutes=minutes,
                invited=invited,
                key=f"party:{interaction.id}",
            )

        await respond_with_jobs(interaction, submit)


def parse_mentions(text: str) -> list[str]:
    """Return the ids of the mentioned members. Raises `UserError` for a text without mentions."""
    ids = [f"discord:{user}" for user in dict.fromkeys(MENTION.findall(text))]
    if text.strip() and not ids:
        raise UserError(NO_MENTIONS_GIVEN)
    return ids


@app_commands.command(description="In a party: say what its picture should show from now on", extras=declare("party"))
@app_commands.describe(words="A few words; they replace what you said before")
@app_commands.guild_only()
async def say(interaction: discord.Interaction[DarkroomClient], words: Range[str, 1, MAX_SAID]) -> None:
    async with reply_on_error(interaction):
        services = interaction.client.services
        job = await services.parties.find_job(str(interaction.channel_id))
        await require_permission(interaction, "party", await services.job_views.load_view(job))
        await send_ephemeral(
            interaction, escape_discord(await services.parties.say(job, words, member_of(interaction)))
        )
