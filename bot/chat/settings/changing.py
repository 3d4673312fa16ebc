"""Changes of rules: by command, by form, by preset, and undo. The result stands above the next card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import discord
from discord import ui

from bot.chat.settings import cards, forms, looking, ours, parts, wording
from bot.chat.settings.asked import Shown, respond
from bot.chat.settings.presses import Press, as_scope
from bot.refused import Refused
from bot.rules import planning, presets, reading
from bot.rules.rule import Change, Key, Rule, Scope, Step, Value

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.views import Member

OWN_COMMANDS: Mapping[str, str] = {"closed": "A server is closed by /settings close, and opened by /settings open."}
NO_CHECKER = "⚠️ No worker can check pictures now: until one can, a moderator must look at each before it is shown."
UNSEEN = "⚠️ I may not write in that channel: until I may, reports go to the list of incidents alone."
PRESET = "Choose a preset: it changes some rules for everyone, and leaves those of single channels, roles and members."


def target(guild: int | None, channel: int | None, role: int | None, user: int | None) -> tuple[Scope, str]:
    """Return whom a rule is for. Raises `Refused` (422) for more than one."""
    if role is not None and role == guild:
        role = None  # the role @everyone is everyone
    given: list[tuple[Scope, int | None]] = [("channel", channel), ("role", role), ("user", user)]
    found: list[tuple[Scope, str]] = [
        (scope, f"discord:{one}" if scope == "user" else str(one)) for scope, one in given if one is not None
    ]
    if len(found) > 1:
        raise Refused("Choose one of channel, role and member: a rule is for one of them.")
    return found[0] if found else ("guild", "")


async def written(interaction: Interaction, member: Member, aim: tuple[Scope, str], setting: str, value: str) -> Change:
    """Set a rule, or remove it if `value` is empty."""
    one = reading.setting(setting)
    if one.name in OWN_COMMANDS:
        raise Refused(OWN_COMMANDS[one.name])
    house = looking.administration(interaction)
    if value.strip():
        if one.name == ours.REPORTS:
            ours.check_reports(interaction, [reading.read(one, value)])
        return await house.set(member, *aim, one.name, value)
    return await house.unset(member, *aim, one.name)


async def set_rule(interaction: Interaction, aim: tuple[Scope, str] | Refused, setting: str, value: str) -> None:
    """`/settings set` and `unset`: say what changed, and what holds in spite of it."""

    async def work(member: Member) -> Shown:
        if isinstance(aim, Refused):
            raise aim
        change = await written(interaction, member, aim, setting, value)
        return Shown(view=cards.done(await said(interaction, change), undo=change.number))

    await respond(interaction, "set", work)


async def said(interaction: Interaction, change: Change) -> str:
    """Return what a change did, and what limits it."""
    lines = [wording.changed(change)]
    if len(change.steps) == 1 and change.steps[0].after is not None:
        rules = await looking.administration(interaction).rules(change.guild)
        lines += wording.besides(change.steps[0], rules)
        lines += _unready(interaction, change.steps[0])
    return "\n".join(lines)


def _unready(interaction: Interaction, step: Step) -> list[str]:
    """Return what a setting still needs to work: a worker that can check, a channel that we may write in."""
    if step.setting == "check" and step.after is True:
        able = any(presence.checks for presence in interaction.client.studio.workers().values())
        return [] if able else [NO_CHECKER]
    if step.setting != "reports" or interaction.guild is None:
        return []
    channel = interaction.guild.get_channel_or_thread(int(str(step.after)))
    if channel is None:
        return [UNSEEN]
    may = channel.permissions_for(interaction.guild.me)
    return [] if may.view_channel and may.send_messages else [UNSEEN]


async def ask(interaction: Interaction, press: Press) -> None:
    """Open the form for the setting, or the rule, that was chosen on a card."""

    async def work(member: Member) -> ui.Modal:
        rules = await looking.administration(interaction).rules(member.guild)
        chosen = press.one()
        if "/" in chosen:
            scope, subject, name = chosen.split("/", 2)
            now = _value(rules, (scope, subject, name))
            return forms.rule(as_scope(scope), subject, reading.setting(name), now)
        one = reading.setting(chosen)
        return forms.change(one, _value(rules, ("guild", "", one.name)))

    await respond(interaction, "set", work)


async def ask_new(interaction: Interaction, press: Press) -> None:
    """Open the form that adds a rule for a channel, a role or a member."""

    async def work(member: Member) -> ui.Modal:
        return forms.add(press.scope(0))

    await respond(interaction, "set", work)


async def save(interaction: Interaction, press: Press) -> None:
    """Apply a submitted form: its id or its fields hold the setting and whom it is for."""

    async def work(member: Member) -> Shown:
        setting, aim = _filled(interaction, press)
        change = await written(interaction, member, aim, setting, ", ".join(press.filled.get("value", ())))
        notice = cards.notice(await said(interaction, change), change.number)
        if aim[0] == "guild":
            return await looking.overview(interaction, member, notice)
        rules = await looking.administration(interaction).rules(member.guild)
        return Shown(view=cards.exceptions(aim[0], rules, 0, notice))

    await respond(interaction, "set", work)


def _filled(interaction: Interaction, press: Press) -> tuple[str, tuple[Scope, str]]:
    if len(press.parts) > 2:
        return press.parts[0], (as_scope(press.parts[1]), press.parts[2].replace(".", ":"))
    channel, who = press.one("channel"), press.one("who")
    role = int(who) if who in press.roles else None
    user = int(who) if who and role is None else None
    aim = target(interaction.guild_id, int(channel) if channel else None, role, user)
    return (press.parts[0] if press.parts else press.one("setting")), aim


async def undo(interaction: Interaction, number: int | None) -> None:
    """Undo this change, or the newest that can be undone."""

    async def work(member: Member) -> Shown:
        change = await looking.administration(interaction).undo(member, number)
        return Shown(view=cards.done(taken_back(change)))

    await respond(interaction, "set", work)


async def undo_pressed(interaction: Interaction, press: Press) -> None:
    await undo(interaction, press.number())


async def undo_listed(interaction: Interaction, press: Press) -> None:
    """Undo a change from the history, which stays."""

    async def work(member: Member) -> Shown:
        change = await looking.administration(interaction).undo(member, press.number(0))
        return await looking.history(interaction, member, press.number(1), cards.notice(taken_back(change)))

    await respond(interaction, "set", work)


def taken_back(change: Change) -> str:
    """Return what an undo did."""
    return "\n".join([f"↩️ No. {change.undoes} was taken back:", *wording.fitting(wording.steps(change.steps), 700)])


async def offer_presets(interaction: Interaction, press: Press) -> None:
    """Show the presets, one tap each."""

    async def work(member: Member) -> Shown:
        offered: Sequence[ui.Item] = [
            parts.beside(f"**{one.name}**\n{one.about}", parts.button("See", "preset", one.name.replace(" ", "-")))
            for one in presets.PRESETS.values()
        ]
        back = parts.row(parts.button("All settings", "show"))
        return Shown(view=parts.layout(parts.text("## Presets", PRESET), *offered, back, colour=cards.BLUE))

    await respond(interaction, "set", work)


async def preset(interaction: Interaction, name: str) -> None:
    """Show what a preset would change, and ask."""

    async def work(member: Member) -> Shown:
        one = presets.preset(name)
        steps = planning.altered(await own(interaction, member), presets.rules_of(one))
        yes = parts.button("Apply", "apply", one.name.replace(" ", "-"), style=discord.ButtonStyle.primary)
        head = [
            f"## Preset “{one.name}”",
            f"{one.about[:1].upper()}{one.about[1:]}.",
            f"It changes {len(steps)} rules for everyone:",
        ]
        return Shown(view=cards.question([*head, *wording.steps(steps)], yes))

    await respond(interaction, "set", work)


async def preset_pressed(interaction: Interaction, press: Press) -> None:
    await preset(interaction, press.parts[0])


async def apply(interaction: Interaction, press: Press) -> None:
    """Apply a confirmed preset."""

    async def work(member: Member) -> Shown:
        change = await looking.administration(interaction).preset(member, press.parts[0])
        return await looking.overview(interaction, member, cards.notice(wording.changed(change), change.number))

    await respond(interaction, "set", work)


async def dismiss(interaction: Interaction, press: Press) -> None:
    """Cancel: change nothing, and offer all settings."""

    async def work(member: Member) -> Shown:
        return Shown(view=cards.done("Nothing was changed.", good=False))

    await respond(interaction, "settings", work)


async def own(interaction: Interaction, member: Member) -> dict[Key, Value]:
    """Return the rules of the admin's server, from which plans are made."""
    rules = await looking.administration(interaction).rules(member.guild)
    return {rule.key: rule.value for rule in rules if rule.guild == member.guild}


def _value(rules: Sequence[Rule], key: Key) -> Value | None:
    return next((rule.value for rule in rules if rule.key == key), None)
