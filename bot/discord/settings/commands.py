"""The commands of `/settings`: their options and their autocomplete. Other modules do the work.

Discord shows them to those who may manage the server; each still checks the permission table. Budgets also work in a
direct conversation, since the operator need not be a member of a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands
from discord.app_commands import AppCommandChannel, Choice, Range

from bot.discord.declarations import declare
from bot.discord.settings import autocomplete, kill_switch, rule_changes, rule_file, rule_pages
from bot.discord.settings.rule_changes import parse_target
from bot.domain.errors import UserError
from bot.policy.rules import value_parser
from bot.policy.rules.catalogue import SETTINGS, Setting
from bot.policy.rules.rule import Scope

if TYPE_CHECKING:
    from bot.discord.settings.responses import Interaction

REQUEST_CHANNEL_TYPES = [
    discord.ChannelType.text,
    discord.ChannelType.news,
    discord.ChannelType.forum,
    discord.ChannelType.voice,
    discord.ChannelType.stage_voice,
]
VALUE_LENGTH = 4000  # characters of a value: a list may be long
BUDGET_OPTIONS = ("cost_day", "cost_month", "running", "queued")  # a budget's options: limits on all members together


class ChannelTransformer(app_commands.Transformer):
    """A channel in which pictures can be asked for. Only its id is needed, so it need not be cached."""

    @property
    def type(self) -> discord.AppCommandOptionType:
        return discord.AppCommandOptionType.channel

    @property
    def channel_types(self) -> list[discord.ChannelType]:
        return REQUEST_CHANNEL_TYPES

    async def transform(self, interaction: discord.Interaction[Any], value: AppCommandChannel, /) -> int:
        return value.id


Channel = app_commands.Transform[int, ChannelTransformer]
settings = app_commands.Group(
    name="settings",
    description="The limits and rules of this server",
    extras=declare(rate="settings"),
    default_permissions=discord.Permissions(manage_guild=True),
    allowed_contexts=app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False),
    allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
)


@settings.command(description="All settings of this server, and buttons to change them")
async def show(interaction: Interaction) -> None:
    await rule_pages.show_overview(interaction)


@settings.command(name="set", description="Set a limit or a switch: for everyone, or for one channel, role or member")
@app_commands.describe(
    setting="What to set",
    value="Such as 5, 30 min, 512x512, on, no limit, or names with commas between them",
    channel="Only in this channel",
    role="Only for this role",
    member="Only for this member",
)
async def set_(
    interaction: Interaction,
    setting: Range[str, 1, 40],
    value: Range[str, 1, VALUE_LENGTH],
    channel: Channel | None = None,
    role: discord.Role | None = None,
    member: discord.User | None = None,
) -> None:
    await rule_changes.set_rule(interaction, _rule_target(interaction, channel, role, member), setting, value)


@settings.command(description="Remove a rule, so that the next wider one holds again")
@app_commands.describe(
    setting="What to remove",
    channel="The rule for this channel",
    role="The rule for this role",
    member="The rule for this member",
)
async def unset(
    interaction: Interaction,
    setting: Range[str, 1, 40],
    channel: Channel | None = None,
    role: discord.Role | None = None,
    member: discord.User | None = None,
) -> None:
    await rule_changes.set_rule(interaction, _rule_target(interaction, channel, role, member), setting, "")


@settings.command(description="What holds for a member, which rule decides it, and what they have used")
@app_commands.describe(member="Which member", setting="Only this setting", channel="As it is in this channel")
async def explain(
    interaction: Interaction,
    member: discord.User,
    setting: Range[str, 1, 40] | None = None,
    channel: Channel | None = None,
) -> None:
    roles = member.roles if isinstance(member, discord.Member) else ()
    channel_id = "" if channel is None else str(channel)
    await rule_pages.show_explanation(
        interaction,
        rule_pages.ExplanationTarget(str(member.id), tuple(str(role.id) for role in roles), channel_id),
        setting or "",
    )


@settings.command(description="Many settings at once, for a kind of server; shows first what it would change")
@app_commands.describe(name="Which preset")
async def preset(interaction: Interaction, name: Range[str, 1, 40]) -> None:
    await rule_changes.preview_preset(interaction, name)


@settings.command(description="What was changed here, by whom, each with a button to undo it")
async def log(interaction: Interaction) -> None:
    await rule_pages.show_history(interaction)


@settings.command(description="Take back the last change, or the one of this number")
@app_commands.describe(number="The change's number in the history")
async def undo(interaction: Interaction, number: Range[int, 1, 2**31] | None = None) -> None:
    await rule_changes.undo_change(interaction, number)


@settings.command(description="This server's settings as a file")
async def export(interaction: Interaction) -> None:
    await rule_file.export_rules(interaction)


@settings.command(name="import", description="Settings from a file, in place of all; shows first what would change")
@app_commands.describe(file="A file as export gives it (YAML)")
async def import_(interaction: Interaction, file: discord.Attachment) -> None:
    await rule_file.offer_import(interaction, file)


@settings.command(description="Close the server: cancel all jobs and admit no new ones (owner only)")
@app_commands.describe(reason="Members read it when they are refused")
async def close(interaction: Interaction, reason: Range[str, 1, 300] | None = None) -> None:
    await kill_switch.open_close_form(interaction, reason or "")


@settings.command(name="open", description="Take new jobs again after close")
async def open_(interaction: Interaction) -> None:
    await kill_switch.reopen(interaction)


@settings.command(description="For this bot's operator: what all members of a server may use together")
@app_commands.describe(
    guild="Which server; this one by default",
    cost_day="Device time in 24 hours, such as 2 h; none to remove",
    cost_month="Device time in 30 days, such as 30 h; none to remove",
    running="Jobs at once; none to remove",
    queued="Jobs that wait; none to remove",
    setting="Any other ceiling",
    value="Its value; none to remove",
)
async def budget(
    interaction: Interaction,
    guild: Range[str, 1, 64] | None = None,
    cost_day: Range[str, 1, 40] | None = None,
    cost_month: Range[str, 1, 40] | None = None,
    running: Range[str, 1, 40] | None = None,
    queued: Range[str, 1, 40] | None = None,
    setting: Range[str, 1, 40] | None = None,
    value: Range[str, 1, 500] | None = None,
) -> None:
    amounts = dict(zip(BUDGET_OPTIONS, (cost_day, cost_month, running, queued), strict=True))
    limits = {f"together_{name}": text for name, text in amounts.items() if text is not None}
    if setting or value:
        limits[setting or ""] = value or ""
    await kill_switch.change_budget(interaction, guild or "", limits)


def _rule_target(
    interaction: Interaction, channel: int | None, role: discord.Role | None, member: discord.User | None
) -> tuple[Scope, str] | UserError:
    """Return whom a rule is for, or the refusal, which is raised only after the permission check."""
    try:
        return parse_target(interaction.guild_id, channel, role and role.id, member and member.id)
    except UserError as error:
        return error


@set_.autocomplete("setting")
@unset.autocomplete("setting")
@explain.autocomplete("setting")
async def suggest_settings(interaction: Interaction, current: str) -> list[Choice[str]]:
    excluded = () if interaction.command is explain else rule_changes.DEDICATED_COMMANDS
    return autocomplete.suggest_settings(current, [name for name in SETTINGS if name not in excluded])


@budget.autocomplete("setting")
async def suggest_ceilings(interaction: Interaction, current: str) -> list[Choice[str]]:
    return autocomplete.suggest_settings(
        current, [name for name, setting in SETTINGS.items() if "operator" in setting.scopes]
    )


@set_.autocomplete("value")
@budget.autocomplete("value")
async def suggest_values(interaction: Interaction, current: str) -> list[Choice[str]]:
    setting = _find_setting(interaction.namespace.setting)
    return autocomplete.suggest_values(setting, current, {} if setting is None else _live_values(interaction, setting))


@budget.autocomplete("cost_day")
@budget.autocomplete("cost_month")
async def suggest_costs(interaction: Interaction, current: str) -> list[Choice[str]]:
    return autocomplete.suggest_named(current, {cost: cost for cost in (*autocomplete.COSTS, "none")})


@budget.autocomplete("guild")
async def suggest_servers(interaction: Interaction, current: str) -> list[Choice[str]]:
    return autocomplete.suggest_named(current, kill_switch.list_guilds(interaction))


@preset.autocomplete("name")
async def suggest_presets(interaction: Interaction, current: str) -> list[Choice[str]]:
    return autocomplete.suggest_presets(current)


def _find_setting(name: str | None) -> Setting | None:
    try:
        return value_parser.find_setting(name or "")
    except UserError:
        return None


def _live_names(interaction: Interaction, setting: str) -> list[str]:
    """Return the models, or the controls or reference adapters of all models, each once."""
    profiles = interaction.client.services.catalog.list_profiles()
    if setting == "models":
        return [profile.name for profile in profiles]
    parts = [
        part for profile in profiles for part in (profile.controls if setting == "controls" else profile.references)
    ]
    return list(dict.fromkeys(part.name for part in parts))


def _live_values(interaction: Interaction, setting: Setting) -> dict[str, str]:
    if setting.kind == "names":
        return {name: name for name in _live_names(interaction, setting.name)}
    if setting.kind == "channel" and interaction.guild is not None and interaction.permissions.manage_guild:
        return {str(channel.id): f"#{channel.name}" for channel in interaction.guild.text_channels}
    return {}
