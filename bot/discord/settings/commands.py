"""The commands of `/settings`: their options and their autocomplete. `rules` does the work.

Discord shows them to those who may manage the server; each still checks the permission table. Budgets also work in a
direct conversation, since the operator need not be a member of a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands
from discord.app_commands import AppCommandChannel, Choice, Range

from bot.discord.declarations import declare
from bot.discord.job_choice import MAX_CHOICE_CHARS, MAX_CHOICES
from bot.discord.settings import rules, texts
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.policy.rules import value_parser
from bot.policy.rules.catalogue import SETTINGS, Setting, SettingKind
from bot.policy.rules.presets import PRESETS
from bot.policy.rules.rule import EVERYWHERE

if TYPE_CHECKING:
    from bot.discord.client import Interaction

REQUEST_CHANNEL_TYPES = [
    discord.ChannelType.text,
    discord.ChannelType.news,
    discord.ChannelType.forum,
    discord.ChannelType.voice,
    discord.ChannelType.stage_voice,
]
VALUE_LENGTH = 4000  # characters of a value: a list may be long
COSTS = ("5 min", "15 min", "30 min", "1 h", "2 h", "4 h", "12 h", "1 d", "no limit")
COMMON_VALUES: Mapping[SettingKind, tuple[str, ...]] = {
    "number": ("1", "2", "3", "5", "10", "20", "50", "100", "250", "500", "1000"),
    "cost": COSTS,
    "seconds": ("0 s", "30 s", "60 s", "2 min", "5 min", "10 min"),
    "size": ("64x64", "256x256", "512x512", "768x768", "1024x1024", "no limit"),
    "switch": ("on", "off"),
}
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
    await rules.show_overview(interaction)


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
    await rules.set_rule(interaction, _rule_target(interaction, channel, role, member), setting, value)


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
    await rules.set_rule(interaction, _rule_target(interaction, channel, role, member), setting, "")


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
    target = rules.ExplanationTarget(str(member.id), tuple(str(role.id) for role in roles), channel_id)
    await rules.show_explanation(interaction, target, setting or "")


@settings.command(description="Many settings at once, for a kind of server; shows first what it would change")
@app_commands.describe(name="Which preset")
async def preset(interaction: Interaction, name: Range[str, 1, 40]) -> None:
    await rules.preview_preset(interaction, name=name)


@settings.command(description="What was changed here, by whom, each with a button to undo it")
async def log(interaction: Interaction) -> None:
    await rules.show_history(interaction)


@settings.command(description="Take back the last change, or the one of this number")
@app_commands.describe(number="The change's number in the history")
async def undo(interaction: Interaction, number: Range[int, 1, 2**31] | None = None) -> None:
    await rules.undo_change(interaction, number=number)


@settings.command(description="This server's settings as a file")
async def export(interaction: Interaction) -> None:
    await rules.export_rules(interaction)


@settings.command(name="import", description="Settings from a file, in place of all; shows first what would change")
@app_commands.describe(file="A file as export gives it (YAML)")
async def import_(interaction: Interaction, file: discord.Attachment) -> None:
    await rules.offer_import(interaction, file)


@settings.command(description="Close the server: cancel all jobs and admit no new ones (owner only)")
@app_commands.describe(reason="Members read it when they are refused")
async def close(interaction: Interaction, reason: Range[str, 1, 300] | None = None) -> None:
    await rules.open_close_form(interaction, reason=reason or "")


@settings.command(name="open", description="Take new jobs again after close")
async def open_(interaction: Interaction) -> None:
    await rules.reopen(interaction)


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
    await rules.change_budget(interaction, guild or "", limits)


def _rule_target(
    interaction: Interaction, channel: int | None, role: discord.Role | None, member: discord.User | None
) -> rules.Target | UserError:
    """Return whom a rule is for, or the refusal, which is raised only after the permission check."""
    try:
        return rules.parse_target(interaction.guild_id, channel, role and role.id, member and member.id)
    except UserError as error:
        return error


@set_.autocomplete("setting")
@unset.autocomplete("setting")
@explain.autocomplete("setting")
async def suggest_settings(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest settings by name, title or description, but for those with commands of their own."""
    excluded = () if interaction.command is explain else rules.DEDICATED_COMMANDS
    return setting_choices(current, [name for name in SETTINGS if name not in excluded])


@budget.autocomplete("setting")
async def suggest_ceilings(interaction: Interaction, current: str) -> list[Choice[str]]:
    return setting_choices(current, [name for name, setting in SETTINGS.items() if "operator" in setting.scopes])


@set_.autocomplete("value")
@budget.autocomplete("value")
async def suggest_values(interaction: Interaction, current: str) -> list[Choice[str]]:
    try:
        setting = value_parser.find_setting(interaction.namespace.setting or "")
    except UserError:
        return []
    return value_choices(setting, current, _live_values(interaction, setting))


@budget.autocomplete("cost_day")
@budget.autocomplete("cost_month")
async def suggest_costs(interaction: Interaction, current: str) -> list[Choice[str]]:
    return _match_labels({cost: cost for cost in (*COSTS, "none")}, current)


@budget.autocomplete("guild")
async def suggest_servers(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest every server that the bot is in, to operators; none to other members."""
    if interaction.user.id not in interaction.client.operator_ids:
        return []
    guilds = {f"discord:{guild.id}": f"{guild.name} ({guild.id})" for guild in interaction.client.guilds}
    labels = {EVERYWHERE: "Every server"} | guilds
    return _to_choices(pair for pair in labels.items() if current.casefold() in f"{pair[1]} {pair[0]}".casefold())


@preset.autocomplete("name")
async def suggest_presets(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest presets by name, with what each is for."""
    return _match_labels({each.name: f"{each.name}: {each.description}" for each in PRESETS.values()}, current)


def setting_choices(current: str, names: Iterable[str]) -> list[Choice[str]]:
    """Return the settings whose name, title or description contains the typed text."""
    query = current.casefold()
    about = {name: SETTINGS[name].description for name in names}
    return _to_choices(
        (name, f"{name}: {description}")
        for name, description in about.items()
        if query in f"{name} {texts.setting_title(name)} {description}".casefold()
    )


def value_choices(setting: Setting, current: str, live_values: Mapping[str, str]) -> list[Choice[str]]:
    """Return values of one setting. `live_values`: value → label, of models or channels, which no setting lists."""
    if setting.kind in ("choices", "names"):
        return _complete_list(setting.choices or tuple(live_values), current)
    if setting.kind == "channel":
        return _match_labels(live_values, current)
    values = setting.choices or COMMON_VALUES.get(setting.kind, ())
    if setting.kind == "number":
        values = tuple(value for value in values if setting.minimum <= int(value) <= setting.maximum)
    return _match_labels({value: value for value in values}, current)


def _live_values(interaction: Interaction, setting: Setting) -> dict[str, str]:
    """Return the models, or the controls or reference adapters of all models, each once; or the server's channels."""
    guild = interaction.guild
    if setting.kind == "channel" and guild is not None and interaction.permissions.manage_guild:
        return {str(channel.id): f"#{channel.name}" for channel in guild.text_channels}
    if setting.kind != "names":
        return {}
    profiles = interaction.client.services.catalog.list_profiles()
    if setting.name == "models":
        return {profile.name: profile.name for profile in profiles}
    parts = (profile.controls if setting.name == "controls" else profile.references for profile in profiles)
    return {part.name: part.name for group in parts for part in group}


def _complete_list(names: tuple[str, ...], current: str) -> list[Choice[str]]:
    """Complete the last name of a list: `ddim, eu` → `ddim, euler`."""
    earlier_names, _, last_name = current.rpartition(",")
    chosen_names = [part.strip() for part in earlier_names.split(",") if part.strip()]
    remaining = [name for name in names if name not in chosen_names and last_name.strip().casefold() in name.casefold()]
    completions = [", ".join([*chosen_names, name]) for name in remaining]
    keywords = [] if chosen_names else [name for name in ("all", "none") if current.strip().casefold() in name]
    return _to_choices((name, name) for name in [*completions, *keywords])


def _match_labels(labels: Mapping[str, str], current: str) -> list[Choice[str]]:
    """Return those of `labels` (value → label) whose label contains the typed text."""
    return _to_choices(pair for pair in labels.items() if current.casefold() in pair[1].casefold())


def _to_choices(pairs: Iterable[tuple[str, str]]) -> list[Choice[str]]:
    fitting_pairs = [(value, label) for value, label in pairs if 0 < len(value) <= MAX_CHOICE_CHARS]
    return [Choice(name=shorten(label, MAX_CHOICE_CHARS), value=value) for value, label in fitting_pairs][:MAX_CHOICES]
