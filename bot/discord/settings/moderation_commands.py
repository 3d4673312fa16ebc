"""The commands of `/moderation`. Discord shows them to those who may manage messages; each checks the table, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.components import review_buttons
from bot.discord.declarations import declare
from bot.discord.settings import incidents as listing
from bot.discord.settings import moderation_changes
from bot.discord.settings.commands import Channel

if TYPE_CHECKING:
    from bot.discord.settings.responses import Interaction

moderation = app_commands.Group(
    name="moderation",
    description="Moderation: word filter, blocks, reports, picture check",
    extras=declare(rate="settings"),
    default_permissions=discord.Permissions(manage_messages=True),
    allowed_contexts=app_commands.AppCommandContext(guild=True, dm_channel=False, private_channel=False),
    allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
)


@moderation.command(description="Words and patterns that no prompt may have; without options, a form with all of them")
@app_commands.describe(add="Words to add, with commas between them", remove="Words to take off the list")
async def words(
    interaction: Interaction, add: Range[str, 1, 2000] | None = None, remove: Range[str, 1, 2000] | None = None
) -> None:
    if add is None and remove is None:
        await moderation_changes.edit_words(interaction)
    else:
        await moderation_changes.change_words(interaction, add or "", remove or "")


@moderation.command(description="A member may make nothing here any more")
@app_commands.describe(member="The member; also one who has left", reason="For the moderators' list")
async def block(interaction: Interaction, member: discord.User, reason: Range[str, 1, 200] | None = None) -> None:
    await moderation_changes.block(interaction, member, reason or "")


@moderation.command(description="A blocked member may ask for pictures again")
@app_commands.describe(member="The member")
async def unblock(interaction: Interaction, member: discord.User) -> None:
    await moderation_changes.unblock(interaction, member)


@moderation.command(description="Where members' reports go; without a channel, to the list of incidents alone")
@app_commands.describe(channel="A channel that moderators read, and the bot may write in")
async def reports(interaction: Interaction, channel: Channel | None = None) -> None:
    await moderation_changes.set_reports_channel(interaction, channel)


@moderation.command(description="Reports, held pictures, refused words: what waits for a moderator, and what happened")
@app_commands.describe(which="What waits, or all")
async def incidents(interaction: Interaction, which: Literal["waiting", "all"] = "waiting") -> None:
    await listing.show_incidents(interaction, which)


@moderation.command(name="held", description="Pictures that the picture check holds and nobody has decided about")
async def list_held(interaction: Interaction) -> None:
    await review_buttons.list_held_jobs(interaction)


@moderation.command(description="Show pictures only after the picture check has passed them")
@app_commands.describe(switch="On or off")
async def check(interaction: Interaction, switch: Literal["on", "off"]) -> None:
    await moderation_changes.switch_picture_check(interaction, switch)
