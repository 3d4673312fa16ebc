"""The kill switch of a server's owner, and the budgets that the operator gives to servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from discord import ui

from bot.discord.responses import guild_of
from bot.discord.settings import cards, forms, rule_pages, texts, ui_parts
from bot.discord.settings.responses import Reply, respond
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord, format_job_count, shorten
from bot.policy.rules.rule import EVERYWHERE, Rule

if TYPE_CHECKING:
    from bot.discord.settings.responses import CardPress, Interaction
    from bot.domain.dto import Member

WHICH_SERVER = "Say for which server: choose one of the list, or give its id, or * for each."
REMOVAL_WORDS = ("none", "remove")
GUILD_ID = re.compile(r"(?:discord:)?([0-9]{1,20})")


async def open_close_form(interaction: Interaction, reason: str = "") -> None:
    """Open the form that says what closing stops, and asks for the reason."""

    async def build_form(member: Member) -> ui.Modal:
        return forms.build_close_form(
            reason
        )  # at once, without counting jobs: the kill switch is needed most when the queue is longest

    await respond(interaction, "close", build_form)


async def on_close_press(interaction: Interaction, press: CardPress) -> None:
    await open_close_form(interaction)


async def close_guild(interaction: Interaction, press: CardPress) -> None:
    """Close the server, after the confirmation."""

    async def build_reply(member: Member) -> Reply:
        number = await rule_pages.get_administration(interaction).close_guild(member, press.first_value("reason"))
        text = f"🔴 **Closed.** {_cancelled_jobs_text(number)}\nNothing is made here until `/settings open`."
        button = ui_parts.make_button("Open", "open", style=ui_parts.Style.success)
        return Reply(view=ui_parts.make_layout(ui_parts.text_with_button(text, button), colour=cards.RED))

    await respond(interaction, "close", build_reply)


def _cancelled_jobs_text(number: int) -> str:
    if not number:
        return "Nothing was running or waiting."
    verb, pronoun = ("was", "it") if number == 1 else ("were", "they")
    return f"{format_job_count(number)} {verb} cancelled; what {pronoun} did not use is refunded."


async def reopen(interaction: Interaction, press: CardPress | None = None) -> None:
    """Admit new jobs again."""

    async def build_reply(member: Member) -> Reply:
        await rule_pages.get_administration(interaction).open_guild(member)
        return Reply(view=cards.build_result("🟢 **Open.** Pictures are made here again."))

    await respond(interaction, "close", build_reply)


async def change_budget(interaction: Interaction, guild: str, limits: Mapping[str, str]) -> None:
    """Set the operator's ceilings for one server or (`*`) for each; without any, show them."""

    async def build_reply(member: Member) -> Reply:
        if not guild and interaction.guild_id is None:
            raise UserError(WHICH_SERVER)
        guild_id = parse_guild(guild or guild_of(interaction))
        administration = rule_pages.get_administration(interaction)
        heading = f"## Budget of {_guild_title(interaction, guild_id)}"
        if not limits:
            rules = [rule for rule in await administration.list_rules(guild_id) if rule.scope == "operator"]
            lines = [_rule_line(rule) for rule in rules] or ["None: nothing but the bot's defaults."]
            return Reply(view=ui_parts.make_layout(ui_parts.make_text(heading, *lines), colour=cards.BLUE))
        if not all(limits) or not all(limits.values()):
            raise UserError("A ceiling needs both: which setting, and its value.")
        values = {name: None if text.strip().casefold() in REMOVAL_WORDS else text for name, text in limits.items()}
        change = await administration.set_ceilings(member, guild_id, **values)
        return Reply(
            view=ui_parts.make_layout(
                ui_parts.make_text(heading, texts.describe_change(change), *texts.format_steps(change.steps)),
                colour=cards.GREEN,
            )
        )

    await respond(interaction, "budget", build_reply)


def parse_guild(typed_text: str) -> str:
    """Return the typed server as the rules name it. Raises `UserError` (422)."""
    if typed_text.strip() == EVERYWHERE:
        return EVERYWHERE
    match = GUILD_ID.fullmatch(typed_text.strip())
    if match is None:
        raise UserError(f"“{shorten(typed_text, 40)}” is no server. {WHICH_SERVER}")
    return f"discord:{match[1]}"


def list_guilds(interaction: Interaction) -> dict[str, str]:
    """Return every server that the bot is in, for operators; none for other members."""
    if interaction.user.id not in interaction.client.operator_ids:
        return {}
    return {EVERYWHERE: "Every server"} | {
        f"discord:{guild.id}": f"{guild.name} ({guild.id})" for guild in interaction.client.guilds
    }


def _guild_title(interaction: Interaction, guild_id: str) -> str:
    if guild_id == EVERYWHERE:
        return "every server"
    guild = interaction.client.get_guild(int(guild_id.rpartition(":")[2]))
    return escape_discord(guild.name if guild else guild_id, 80)


def _rule_line(rule: Rule) -> str:
    return f"{texts.setting_title(rule.setting)} · **{texts.format_for_card(rule.setting, rule.value)}**"
