"""`/reproduce`: the same prompt, seed and settings once more, in exact mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from discord import app_commands
from discord.app_commands import Range

from bot.discord.declarations import declare
from bot.discord.job_choice import recent_jobs_autocomplete
from bot.discord.responses import member_of, reply_on_error, require_permission, respond_with_jobs
from engine.contract import Recipe

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member


@app_commands.command(
    description="Make a picture again: same prompt, same seed, same pixels",
    extras=declare("reproduce", help="the same once more"),
)
@app_commands.describe(job="Choose one; a link to its message, its id or its seed works too")
async def reproduce(interaction: Interaction, job: Range[str, 1, 300]) -> None:
    async with reply_on_error(interaction):
        await reproduce_job(
            interaction, await interaction.client.services.history.find_job(job, member_of(interaction))
        )


reproduce.autocomplete("job")(recent_jobs_autocomplete(lambda view: isinstance(view.task, Recipe)))


async def reproduce_job(interaction: Interaction, view: JobView) -> None:
    """Submit the same job again; respond as to any job."""
    await require_permission(interaction, "reproduce", view)

    async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
        key = f"reproduce:{interaction.id}"
        return [await interaction.client.services.variations.reproduce(view.id, member, destination, key=key)]

    await respond_with_jobs(interaction, submit)
