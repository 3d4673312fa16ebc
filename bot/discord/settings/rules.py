"""What admins see and change of the rules: overview, exceptions, explanations, history, presets, files, kill switch.

A result stands above the next card. An import shows its changes and asks; it is all or nothing. The question's message
carries the file, so it can be confirmed after a restart.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import discord
from discord import ui

from bot.discord.responses import guild_of
from bot.discord.settings import cards, texts
from bot.discord.settings.responses import (
    HANDLERS,
    CardPress,
    Reply,
    Request,
    Style,
    answers,
    make_button,
    make_layout,
    make_text,
    parse_scope,
)
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord, format_job_count, shorten
from bot.policy.permissions import forbidden_reason
from bot.policy.rules import planned_changes, presets, value_parser
from bot.policy.rules.rule import EVERYWHERE, RuleChange, RuleKey, RuleStep, RuleValue, Scope
from bot.services.rule_admin import undo_permissions

if TYPE_CHECKING:
    from bot.discord.client import Interaction

HISTORY_LIMIT = 500  # changes in the history
REPORTS = "reports"
DEDICATED_COMMANDS: Mapping[str, str] = {
    "closed": "A server is closed by /settings close, and opened by /settings open."
}
NO_CHECKER = "⚠️ No worker can check pictures now: until one can, a moderator must look at each before it is shown."
CHANNEL_NOT_WRITABLE = "⚠️ I may not write in that channel: until I may, reports go to the list of incidents alone."
PRESETS_INTRO = (
    "Choose a preset: it changes some rules for everyone, and leaves those of single channels, roles and members."
)
FILE_NAME = "darkroom-settings.yaml"
FILE_SUFFIXES = (".yaml", ".yml", ".txt")
MESSAGE_CHARACTERS = 1900  # characters of the lines, out of a message's 2000
FILE_UNREADABLE = "The file of this import cannot be read any more. Send it again with /settings import."
WHICH_SERVER = "Say for which server: choose one of the list, or give its id, or * for each."
REMOVAL_WORDS = ("none", "remove")
GUILD_ID = re.compile(r"(?:discord:)?([0-9]{1,20})")
Target = tuple[Scope, str]  # whom a rule is for


async def _build_overview(request: Request, notice: cards.Notice = ()) -> Reply:
    guild = request.member.guild
    rules = await request.rules.list_rules(guild)
    effective_rules = await request.rules.effective_rules(Member("", "", guild))  # of a member without exceptions
    costs = texts.describe_model_costs(request.services.catalog.list_profiles())
    return Reply(view=cards.build_overview(effective_rules, rules, notice, costs))


@answers("settings", "show")
async def show_overview(request: Request, press: CardPress | None = None) -> Reply:
    """Show all settings."""
    return await _build_overview(request)


@answers("settings", "page")
async def show_exceptions_page(request: Request, press: CardPress) -> Reply:
    """Show a page of the rules for single channels, roles or members."""
    rules = await request.rules.list_rules(request.member.guild)
    return Reply(view=cards.build_exceptions(_scope_of(press), rules, press.number_at()))


@dataclass(frozen=True)
class ExplanationTarget:
    """Whom an explanation is about: a user's id, the ids of their roles, and a channel's or none."""

    user: str
    roles: tuple[str, ...] = ()
    channel: str = ""


@answers("explain")
async def show_explanation(request: Request, target: ExplanationTarget, setting: str = "") -> Reply:
    """Show what holds for a member, which rule decides it, and their usage; with a way to change it for them."""
    guild = request.member.guild
    channel = target.channel or request.member.channel  # this channel, if none was named
    user_id = f"discord:{target.user}"
    names = {role: texts.make_placeholder("role", role) for role in target.roles}
    names |= {channel: texts.make_placeholder("channel", channel), user_id: texts.make_placeholder("user", target.user)}
    member = Member(user_id, target.user, guild, roles=target.roles, channel=channel)
    found = await request.rules.explain(guild, member, setting or None, names=names)
    sections = [("", [texts.format_explanation(each) for each in found])] if setting else texts.build_sections(found)
    header = f"## What holds for <@{target.user}>" + (f" in <#{channel}>" if channel else "")
    return Reply(view=cards.build_explanation(header, sections, target.user))


async def explain_picked_member(interaction: Interaction, press: CardPress) -> None:
    """Explain the member that was picked on the overview."""
    data: Any = interaction.data or {}
    resolved: Mapping[str, Any] = data.get("resolved") or {}
    members: Mapping[str, Any] = resolved.get("members") or {}
    roles: Sequence[str] = members.get(press.first_value(), {}).get("roles", ())
    await show_explanation(interaction, ExplanationTarget(press.first_value(), (*roles, str(interaction.guild_id))))


HANDLERS["explain"] = explain_picked_member


async def _build_history(request: Request, page: int, notice: cards.Notice = ()) -> Reply:
    changes = await request.rules.list_changes(request.member.guild, HISTORY_LIMIT)
    undoable = {
        change.number
        for change in changes
        if not any(forbidden_reason(action, request.member) for action in undo_permissions(change))
    }
    return Reply(view=cards.build_history(changes, page, undoable, notice))


@answers("settings", "log")
async def show_history(request: Request, press: CardPress | None = None) -> Reply:
    """Show a page of changes, the newest first, each with its Undo."""
    return await _build_history(request, press.number_at() if press else 0)


def parse_target(guild: int | None, channel: int | None, role: int | None, user: int | None) -> Target:
    """Return whom a rule is for. Raises `UserError` (422) for more than one."""
    if role is not None and role == guild:
        role = None  # the role @everyone is everyone
    candidates: list[tuple[Scope, int | None]] = [("channel", channel), ("role", role), ("user", user)]
    targets: list[Target] = [
        (scope, f"discord:{number}" if scope == "user" else str(number))
        for scope, number in candidates
        if number is not None
    ]
    if len(targets) > 1:
        raise UserError("Choose one of channel, role and member: a rule is for one of them.")
    return targets[0] if targets else ("guild", "")


@answers("set")
async def set_rule(request: Request, target: Target | UserError, setting: str, value: str) -> Reply:
    """Set a rule, or remove it; say what changed, and what holds in spite of it. A refused `target` is raised here."""
    if isinstance(target, UserError):
        raise target
    change = await _write_rule(request, target, setting, value)
    return Reply(view=cards.build_result(await _describe_result(request, change), undo_number=change.number))


async def _write_rule(request: Request, target: Target, setting: str, value: str) -> RuleChange:
    """Set a rule, or remove it if `value` is empty."""
    definition = value_parser.find_setting(setting)
    if definition.name in DEDICATED_COMMANDS:
        raise UserError(DEDICATED_COMMANDS[definition.name])
    if not value.strip():
        return await request.rules.unset_rule(request.member, *target, definition.name)
    if definition.name == REPORTS:
        _check_report_channels(request, [value_parser.parse_value(definition, value)])
    return await request.rules.set_rule(request.member, *target, definition.name, value)


def _check_report_channels(request: Request, channels: Iterable[RuleValue]) -> None:
    """Raise `UserError` (422) for anything but a channel or thread that the bot sees on this server."""
    guild = request.interaction.guild
    for channel in map(str, channels):
        if guild is None or not channel.isdecimal() or not guild.get_channel_or_thread(int(channel)):
            raise UserError(
                f"Reports go to a channel of this server, and I see none with the id {shorten(channel, 30)} here."
            )


async def _describe_result(request: Request, change: RuleChange) -> str:
    """Return what a change did, and what limits it."""
    lines = [texts.describe_change(change)]
    if len(change.steps) == 1 and change.steps[0].after is not None:
        lines += texts.describe_overrides(change.steps[0], await request.rules.list_rules(change.guild))
        lines += _missing_requirements(request, change.steps[0])
    return "\n".join(lines)


def _missing_requirements(request: Request, step: RuleStep) -> list[str]:
    """Return what a setting still needs to work: a worker that can check, a channel that we may write in."""
    if step.setting == "check" and step.after is True:
        has_checker = any(presence.has_picture_check for presence in request.services.live_workers().values())
        return [] if has_checker else [NO_CHECKER]
    guild = request.interaction.guild
    if step.setting != REPORTS or guild is None:
        return []
    channel = guild.get_channel_or_thread(int(str(step.after)))
    permissions = channel.permissions_for(guild.me) if channel else discord.Permissions.none()
    return [] if permissions.view_channel and permissions.send_messages else [CHANNEL_NOT_WRITABLE]


@answers("set", "change")
async def open_change_form(request: Request, press: CardPress) -> ui.Modal:
    """Open the form for the setting, or the rule, that was chosen on a card."""
    rules = await request.rules.list_rules(request.member.guild)
    choice = press.first_value()
    scope, subject, name = choice.split("/", 2) if "/" in choice else ("guild", "", choice)
    setting = value_parser.find_setting(name)
    value = next((rule.value for rule in rules if rule.key == (scope, subject, setting.name)), None)
    if "/" in choice:
        return cards.build_rule_form(parse_scope(scope), subject, setting, value)
    return cards.build_change_form(setting, value)


def _scope_of(press: CardPress) -> Scope:
    return parse_scope(press.parts[0] if press.parts else "")


@answers("set", "add")
async def open_add_form(request: Request, press: CardPress) -> ui.Modal:
    """Open the form that adds a rule for a channel, a role or a member."""
    return cards.build_add_form(_scope_of(press))


@answers("set", "save")
async def save_form(request: Request, press: CardPress) -> Reply:
    """Apply a submitted form: its id or its fields hold the setting and whom it is for."""
    setting, target = _parse_form(request.interaction.guild_id, press)
    change = await _write_rule(request, target, setting, ", ".join(press.fields.get("value", ())))
    notice = cards.build_notice(await _describe_result(request, change), change.number)
    if target[0] == "guild":
        return await _build_overview(request, notice)
    rules = await request.rules.list_rules(request.member.guild)
    return Reply(view=cards.build_exceptions(target[0], rules, 0, notice))


def _parse_form(guild: int | None, press: CardPress) -> tuple[str, Target]:
    if len(press.parts) > 2:
        return press.parts[0], (parse_scope(press.parts[1]), press.parts[2].replace(".", ":"))
    channel = press.first_value("channel")
    subject = press.first_value("who")
    role = int(subject) if subject in press.roles else None
    user = int(subject) if subject and role is None else None
    target = parse_target(guild, int(channel) if channel else None, role, user)
    return (press.parts[0] if press.parts else press.first_value("setting")), target


@answers("set", "undo")
async def undo_change(request: Request, press: CardPress | None = None, number: int | None = None) -> Reply:
    """Undo the change of a number or a press, or else the newest that can be undone."""
    change = await request.rules.undo_change(request.member, press.number_at() if press else number)
    return Reply(view=cards.build_result(texts.describe_undo(change)))


@answers("set", "back")
async def undo_in_history(request: Request, press: CardPress) -> Reply:
    """Undo a change from the history, which stays."""
    change = await request.rules.undo_change(request.member, press.number_at(0))
    return await _build_history(request, press.number_at(1), cards.build_notice(texts.describe_undo(change)))


@answers("set", "presets")
async def show_presets(request: Request, press: CardPress) -> Reply:
    """Show the presets, one tap each."""
    items: list[ui.Item[Any]] = [make_text("## Presets", PRESETS_INTRO)]
    for preset in presets.PRESETS.values():
        see_button = make_button("See", "preset", preset.name.replace(" ", "-"))
        items.append(ui.Section(f"**{preset.name}**\n{preset.description}", accessory=see_button))
    return Reply(view=make_layout(*items, ui.ActionRow(make_button("All settings", "show")), colour=cards.BLUE))


@answers("set", "preset")
async def preview_preset(request: Request, press: CardPress | None = None, name: str = "") -> Reply:
    """Show what a preset would change, and ask."""
    preset = presets.find_preset(press.parts[0] if press else name)
    steps = planned_changes.plan_rules(await load_own_rules(request), presets.preset_rules(preset))
    confirm_button = make_button("Apply", "apply", preset.name.replace(" ", "-"), style=Style.primary)
    header = [
        f"## Preset “{preset.name}”",
        f"{preset.description[:1].upper()}{preset.description[1:]}.",
        f"It changes {len(steps)} rules for everyone:",
    ]
    return Reply(view=cards.build_question([*header, *texts.format_steps(steps)], confirm_button))


@answers("set", "apply")
async def apply_preset(request: Request, press: CardPress) -> Reply:
    """Apply a confirmed preset."""
    change = await request.rules.apply_preset(request.member, press.parts[0])
    return await _build_overview(request, cards.build_notice(texts.describe_change(change), change.number))


@answers("settings", "dismiss")
async def dismiss(request: Request, press: CardPress) -> Reply:
    """Cancel: change nothing, and offer all settings."""
    return Reply(view=cards.build_result("Nothing was changed.", success=False))


async def load_own_rules(request: Request) -> dict[RuleKey, RuleValue]:
    """Return the rules of the admin's server, from which plans are made."""
    guild = request.member.guild
    return {rule.key: rule.value for rule in await request.rules.list_rules(guild) if rule.guild == guild}


@answers("settings", "export")
async def export_rules(request: Request, press: CardPress | None = None) -> Reply:
    """Send the rules as YAML, to keep, to edit, or to import into another server."""
    text = await request.rules.export_yaml(request.member.guild)
    caption = "The rules of this server. Edit the file and send it back with `/settings import`."
    return Reply(content=caption, files=(_yaml_file(text),), as_new_message=True)


@answers("set")
async def offer_import(request: Request, attachment: discord.Attachment) -> Reply:
    """Show what a file would change, and ask."""
    text = await _read_attachment(attachment)
    steps = planned_changes.plan_import(await load_own_rules(request), await _parse_rules(request, text))
    lines = [f"**This changes {len(steps)} rules:**", *texts.format_steps(steps)]
    view = ui.View(timeout=None)
    view.add_item(make_button("Import", "bring", style=Style.primary))
    view.add_item(make_button("Cancel", "leave"))
    content = "\n".join(texts.fit_lines(lines, MESSAGE_CHARACTERS))
    return Reply(content=content, view=view, files=(_yaml_file(text),))


@answers("set", "bring")
async def confirm_import(request: Request, press: CardPress) -> Reply:
    """Import after the confirmation: the file is read again, from the question's message."""
    message = request.interaction.message
    if message is None or not message.attachments:
        raise UserError(FILE_UNREADABLE, 404)
    text = await _read_attachment(message.attachments[0])
    await _parse_rules(request, text)
    change = await request.rules.import_yaml(request.member, text)
    notice = cards.build_notice(texts.describe_change(change), change.number)
    return replace(await _build_overview(request, notice), as_new_message=True)


@answers("set", "leave")
async def cancel_import(request: Request, press: CardPress) -> Reply:
    """Cancel: the question goes, with its file."""
    return Reply(content="Nothing was changed.")


async def _parse_rules(request: Request, text: str) -> dict[RuleKey, RuleValue]:
    """Return the rules in a file. Raises `UserError` for a channel of another server."""
    values = await asyncio.to_thread(planned_changes.load_rules, text, request.member.guild)
    _check_report_channels(request, (value for (_, _, name), value in values.items() if name == REPORTS))
    return values


async def _read_attachment(attachment: discord.Attachment) -> str:
    """Return the text of a file. Raises `UserError`; before the download, if the file is too large or not text."""
    max_bytes = planned_changes.MAX_BYTES
    if attachment.size > max_bytes:
        text = f"That file is too large: {attachment.size // 1024} KiB of at most {max_bytes // 1024} KiB."
        raise UserError(text, 413)
    content_type = (attachment.content_type or "").partition(";")[0].strip().casefold()  # a guess of Discord's, or none
    is_text = not content_type or content_type.startswith("text/") or content_type.endswith(("yaml", "octet-stream"))
    if not is_text or not attachment.filename.casefold().endswith(FILE_SUFFIXES):
        name = shorten(attachment.filename, 60)
        raise UserError(f"“{name}” is no YAML file: the file that /settings export gives ends in .yaml.")
    try:
        payload = await attachment.read()
    except discord.HTTPException:
        raise UserError(FILE_UNREADABLE, 404) from None
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        raise UserError(f"Line {line} of the file is not UTF-8 text. Save it as UTF-8 and send it again.") from None


def _yaml_file(text: str) -> discord.File:
    return discord.File(io.BytesIO(text.encode()), filename=FILE_NAME)


@answers("close", "close")
async def open_close_form(request: Request, press: CardPress | None = None, reason: str = "") -> ui.Modal:
    """Open the form that says what closing stops. It counts no jobs: the queue is longest when it is needed most."""
    return cards.build_close_form(reason)


@answers("close", "closed")
async def close_guild(request: Request, press: CardPress) -> Reply:
    """Close the server, after the confirmation."""
    number = await request.rules.close_guild(request.member, press.first_value("reason"))
    verb, pronoun = ("was", "it") if number == 1 else ("were", "they")
    cancelled = f"{format_job_count(number)} {verb} cancelled; what {pronoun} did not use is refunded."
    cancelled = cancelled if number else "Nothing was running or waiting."
    text = f"🔴 **Closed.** {cancelled}\nNothing is made here until `/settings open`."
    open_button = make_button("Open", "open", style=Style.success)
    return Reply(view=make_layout(ui.Section(text, accessory=open_button), colour=cards.RED))


@answers("close", "open")
async def reopen(request: Request, press: CardPress | None = None) -> Reply:
    """Admit new jobs again."""
    await request.rules.open_guild(request.member)
    return Reply(view=cards.build_result("🟢 **Open.** Pictures are made here again."))


@answers("budget")
async def change_budget(request: Request, guild: str, limits: Mapping[str, str]) -> Reply:
    """Set the operator's ceilings for one server or (`*`) for each; without any, show them."""
    interaction = request.interaction
    if not guild and interaction.guild_id is None:
        raise UserError(WHICH_SERVER)
    guild_id = parse_guild(guild or guild_of(interaction))
    heading = f"## Budget of {_guild_title(interaction, guild_id)}"
    if not limits:
        rules = [rule for rule in await request.rules.list_rules(guild_id) if rule.scope == "operator"]
        lines = [texts.format_rule(rule) for rule in rules] or ["None: nothing but the bot's defaults."]
        return Reply(view=make_layout(make_text(heading, *lines), colour=cards.BLUE))
    if not all(limits) or not all(limits.values()):
        raise UserError("A ceiling needs both: which setting, and its value.")
    values = {name: None if text.strip().casefold() in REMOVAL_WORDS else text for name, text in limits.items()}
    change = await request.rules.set_ceilings(request.member, guild_id, **values)
    text = make_text(heading, texts.describe_change(change), *texts.format_steps(change.steps))
    return Reply(view=make_layout(text, colour=cards.GREEN))


def parse_guild(typed_text: str) -> str:
    """Return the typed server as the rules name it. Raises `UserError` (422)."""
    if typed_text.strip() == EVERYWHERE:
        return EVERYWHERE
    match = GUILD_ID.fullmatch(typed_text.strip())
    if match is None:
        raise UserError(f"“{shorten(typed_text, 40)}” is no server. {WHICH_SERVER}")
    return f"discord:{match[1]}"


def _guild_title(interaction: Interaction, guild_id: str) -> str:
    if guild_id == EVERYWHERE:
        return "every server"
    guild = interaction.client.get_guild(int(guild_id.rpartition(":")[2]))
    return escape_discord(guild.name if guild else guild_id, 80)
