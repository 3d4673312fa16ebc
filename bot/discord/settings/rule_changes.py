"""Changes of rules: by command, by form, by preset, and undo. The result stands above the next card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

from bot.discord.settings import cards, forms, rule_pages, texts, ui_parts
from bot.discord.settings.responses import CardPress, Reply, parse_scope, respond
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.policy.rules import planned_changes, presets, value_parser
from bot.policy.rules.rule import Rule, RuleChange, RuleKey, RuleStep, RuleValue, Scope

if TYPE_CHECKING:
    from bot.discord.settings.responses import Interaction
    from bot.domain.dto import Member

REPORTS = "reports"
DEDICATED_COMMANDS: Mapping[str, str] = {
    "closed": "A server is closed by /settings close, and opened by /settings open."
}
NO_CHECKER = "⚠️ No worker can check pictures now: until one can, a moderator must look at each before it is shown."
CHANNEL_NOT_WRITABLE = "⚠️ I may not write in that channel: until I may, reports go to the list of incidents alone."
PRESETS_INTRO = (
    "Choose a preset: it changes some rules for everyone, and leaves those of single channels, roles and members."
)


def parse_target(guild: int | None, channel: int | None, role: int | None, user: int | None) -> tuple[Scope, str]:
    """Return whom a rule is for. Raises `UserError` (422) for more than one."""
    if role is not None and role == guild:
        role = None  # the role @everyone is everyone
    candidates: list[tuple[Scope, int | None]] = [("channel", channel), ("role", role), ("user", user)]
    targets: list[tuple[Scope, str]] = [
        (scope, f"discord:{number}" if scope == "user" else str(number))
        for scope, number in candidates
        if number is not None
    ]
    if len(targets) > 1:
        raise UserError("Choose one of channel, role and member: a rule is for one of them.")
    return targets[0] if targets else ("guild", "")


async def write_rule(
    interaction: Interaction, member: Member, target: tuple[Scope, str], setting: str, value: str
) -> RuleChange:
    """Set a rule, or remove it if `value` is empty."""
    definition = value_parser.find_setting(setting)
    if definition.name in DEDICATED_COMMANDS:
        raise UserError(DEDICATED_COMMANDS[definition.name])
    administration = rule_pages.get_administration(interaction)
    if value.strip():
        if definition.name == REPORTS:
            check_report_channels(interaction, [value_parser.parse_value(definition, value)])
        return await administration.set_rule(member, *target, definition.name, value)
    return await administration.unset_rule(member, *target, definition.name)


def check_report_channels(interaction: Interaction, channels: Iterable[RuleValue]) -> None:
    """Raise `UserError` (422) for anything but a channel or thread that the bot sees on this server."""
    for channel in map(str, channels):
        is_known = (
            interaction.guild is not None
            and channel.isdecimal()
            and interaction.guild.get_channel_or_thread(int(channel))
        )
        if not is_known:
            raise UserError(
                f"Reports go to a channel of this server, and I see none with the id {shorten(channel, 30)} here."
            )


async def set_rule(interaction: Interaction, target: tuple[Scope, str] | UserError, setting: str, value: str) -> None:
    """`/settings set` and `unset`: say what changed, and what holds in spite of it."""

    async def build_reply(member: Member) -> Reply:
        if isinstance(target, UserError):
            raise target
        change = await write_rule(interaction, member, target, setting, value)
        return Reply(view=cards.build_result(await describe_result(interaction, change), undo_number=change.number))

    await respond(interaction, "set", build_reply)


async def describe_result(interaction: Interaction, change: RuleChange) -> str:
    """Return what a change did, and what limits it."""
    lines = [texts.describe_change(change)]
    if len(change.steps) == 1 and change.steps[0].after is not None:
        rules = await rule_pages.get_administration(interaction).list_rules(change.guild)
        lines += texts.describe_overrides(change.steps[0], rules)
        lines += _missing_requirements(interaction, change.steps[0])
    return "\n".join(lines)


def _missing_requirements(interaction: Interaction, step: RuleStep) -> list[str]:
    """Return what a setting still needs to work: a worker that can check, a channel that we may write in."""
    if step.setting == "check" and step.after is True:
        has_checker = any(
            presence.has_picture_check for presence in interaction.client.services.live_workers().values()
        )
        return [] if has_checker else [NO_CHECKER]
    if step.setting != "reports" or interaction.guild is None:
        return []
    channel = interaction.guild.get_channel_or_thread(int(str(step.after)))
    if channel is None:
        return [CHANNEL_NOT_WRITABLE]
    permissions = channel.permissions_for(interaction.guild.me)
    return [] if permissions.view_channel and permissions.send_messages else [CHANNEL_NOT_WRITABLE]


async def open_change_form(interaction: Interaction, press: CardPress) -> None:
    """Open the form for the setting, or the rule, that was chosen on a card."""

    async def build_form(member: Member) -> ui.Modal:
        rules = await rule_pages.get_administration(interaction).list_rules(member.guild)
        choice = press.first_value()
        if "/" in choice:
            scope, subject, name = choice.split("/", 2)
            current = _find_value(rules, (scope, subject, name))
            return forms.build_rule_form(parse_scope(scope), subject, value_parser.find_setting(name), current)
        setting = value_parser.find_setting(choice)
        return forms.build_change_form(setting, _find_value(rules, ("guild", "", setting.name)))

    await respond(interaction, "set", build_form)


async def open_add_form(interaction: Interaction, press: CardPress) -> None:
    """Open the form that adds a rule for a channel, a role or a member."""

    async def build_form(member: Member) -> ui.Modal:
        return forms.build_add_form(press.scope_at(0))

    await respond(interaction, "set", build_form)


async def save_form(interaction: Interaction, press: CardPress) -> None:
    """Apply a submitted form: its id or its fields hold the setting and whom it is for."""

    async def build_reply(member: Member) -> Reply:
        setting, target = _parse_form(interaction, press)
        change = await write_rule(interaction, member, target, setting, ", ".join(press.fields.get("value", ())))
        notice = cards.build_notice(await describe_result(interaction, change), change.number)
        if target[0] == "guild":
            return await rule_pages.build_overview(interaction, member, notice)
        rules = await rule_pages.get_administration(interaction).list_rules(member.guild)
        return Reply(view=cards.build_exceptions(target[0], rules, 0, notice))

    await respond(interaction, "set", build_reply)


def _parse_form(interaction: Interaction, press: CardPress) -> tuple[str, tuple[Scope, str]]:
    if len(press.parts) > 2:
        return press.parts[0], (parse_scope(press.parts[1]), press.parts[2].replace(".", ":"))
    channel = press.first_value("channel")
    subject = press.first_value("who")
    role = int(subject) if subject in press.roles else None
    user = int(subject) if subject and role is None else None
    target = parse_target(interaction.guild_id, int(channel) if channel else None, role, user)
    return (press.parts[0] if press.parts else press.first_value("setting")), target


async def undo_change(interaction: Interaction, number: int | None) -> None:
    """Undo this change, or the newest that can be undone."""

    async def build_reply(member: Member) -> Reply:
        change = await rule_pages.get_administration(interaction).undo_change(member, number)
        return Reply(view=cards.build_result(describe_undo(change)))

    await respond(interaction, "set", build_reply)


async def on_undo_press(interaction: Interaction, press: CardPress) -> None:
    await undo_change(interaction, press.number_at())


async def undo_in_history(interaction: Interaction, press: CardPress) -> None:
    """Undo a change from the history, which stays."""

    async def build_reply(member: Member) -> Reply:
        change = await rule_pages.get_administration(interaction).undo_change(member, press.number_at(0))
        return await rule_pages.build_history(
            interaction, member, press.number_at(1), cards.build_notice(describe_undo(change))
        )

    await respond(interaction, "set", build_reply)


def describe_undo(change: RuleChange) -> str:
    """Return what an undo did."""
    return "\n".join(
        [f"↩️ No. {change.undone_change} was taken back:", *texts.fit_lines(texts.format_steps(change.steps), 700)]
    )


async def show_presets(interaction: Interaction, press: CardPress) -> None:
    """Show the presets, one tap each."""

    async def build_reply(member: Member) -> Reply:
        preset_rows: Sequence[ui.Item[Any]] = [
            ui_parts.text_with_button(
                f"**{preset.name}**\n{preset.description}",
                ui_parts.make_button("See", "preset", preset.name.replace(" ", "-")),
            )
            for preset in presets.PRESETS.values()
        ]
        back_row = ui_parts.make_row(ui_parts.make_button("All settings", "show"))
        return Reply(
            view=ui_parts.make_layout(
                ui_parts.make_text("## Presets", PRESETS_INTRO), *preset_rows, back_row, colour=cards.BLUE
            )
        )

    await respond(interaction, "set", build_reply)


async def preview_preset(interaction: Interaction, name: str) -> None:
    """Show what a preset would change, and ask."""

    async def build_reply(member: Member) -> Reply:
        preset = presets.find_preset(name)
        steps = planned_changes.plan_rules(await load_own_rules(interaction, member), presets.preset_rules(preset))
        confirm_button = ui_parts.make_button(
            "Apply", "apply", preset.name.replace(" ", "-"), style=discord.ButtonStyle.primary
        )
        header = [
            f"## Preset “{preset.name}”",
            f"{preset.description[:1].upper()}{preset.description[1:]}.",
            f"It changes {len(steps)} rules for everyone:",
        ]
        return Reply(view=cards.build_question([*header, *texts.format_steps(steps)], confirm_button))

    await respond(interaction, "set", build_reply)


async def on_preset_press(interaction: Interaction, press: CardPress) -> None:
    await preview_preset(interaction, press.parts[0])


async def apply_preset(interaction: Interaction, press: CardPress) -> None:
    """Apply a confirmed preset."""

    async def build_reply(member: Member) -> Reply:
        change = await rule_pages.get_administration(interaction).apply_preset(member, press.parts[0])
        return await rule_pages.build_overview(
            interaction, member, cards.build_notice(texts.describe_change(change), change.number)
        )

    await respond(interaction, "set", build_reply)


async def dismiss(interaction: Interaction, press: CardPress) -> None:
    """Cancel: change nothing, and offer all settings."""

    async def build_reply(member: Member) -> Reply:
        return Reply(view=cards.build_result("Nothing was changed.", success=False))

    await respond(interaction, "settings", build_reply)


async def load_own_rules(interaction: Interaction, member: Member) -> dict[RuleKey, RuleValue]:
    """Return the rules of the admin's server, from which plans are made."""
    rules = await rule_pages.get_administration(interaction).list_rules(member.guild)
    return {rule.key: rule.value for rule in rules if rule.guild == member.guild}


def _find_value(rules: Sequence[Rule], key: RuleKey) -> RuleValue | None:
    return next((rule.value for rule in rules if rule.key == key), None)
