"""The kill switch of a server's owner, and the budgets that the operator gives to servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from discord import ui

from bot.chat.answer import guild_of
from bot.chat.settings import cards, forms, looking, parts, wording
from bot.chat.settings.asked import Shown, respond
from bot.refused import Refused
from bot.rules.rule import EVERYWHERE, Rule
from bot.sentences import jobs, shortened

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.chat.settings.presses import Press
    from bot.views import Member

WHICH = "Say for which server: choose one of the list, or give its id, or * for each."
REMOVED = ("none", "remove")
GUILD = re.compile(r"(?:discord:)?([0-9]{1,20})")


async def ask_close(interaction: Interaction, reason: str = "") -> None:
    """Open the form that says what closing stops, and asks for the reason."""

    async def work(member: Member) -> ui.Modal:
        return forms.close(reason)  # at once: no jobs are counted, for the queue is longest when this is needed most

    await respond(interaction, "close", work)


async def close_pressed(interaction: Interaction, press: Press) -> None:
    await ask_close(interaction)


async def close(interaction: Interaction, press: Press) -> None:
    """Close the server, after the confirmation."""

    async def work(member: Member) -> Shown:
        number = await looking.administration(interaction).close(member, press.one("reason"))
        said = f"🔴 **Closed.** {_stopped(number)}\nNothing is made here until `/settings open`."
        button = parts.button("Open", "open", style=parts.Style.success)
        return Shown(view=parts.layout(parts.beside(said, button), colour=cards.RED))

    await respond(interaction, "close", work)


def _stopped(number: int) -> str:
    if not number:
        return "Nothing was running or waiting."
    were, it = ("was", "it") if number == 1 else ("were", "they")
    return f"{jobs(number)} {were} cancelled; what {it} did not use is refunded."


async def reopen(interaction: Interaction, press: Press | None = None) -> None:
    """Admit new jobs again."""

    async def work(member: Member) -> Shown:
        await looking.administration(interaction).open(member)
        return Shown(view=cards.done("🟢 **Open.** Pictures are made here again."))

    await respond(interaction, "close", work)


async def budget(interaction: Interaction, guild: str, limits: Mapping[str, str]) -> None:
    """Set the operator's ceilings for one server or (`*`) for each; without any, show them."""

    async def work(member: Member) -> Shown:
        if not guild and interaction.guild_id is None:
            raise Refused(WHICH)
        where = server(guild or guild_of(interaction))
        house, head = looking.administration(interaction), f"## Budget of {_named(interaction, where)}"
        if not limits:
            rules = [rule for rule in await house.rules(where) if rule.scope == "house"]
            lines = [_line(rule) for rule in rules] or ["None: nothing but the bot's defaults."]
            return Shown(view=parts.layout(parts.text(head, *lines), colour=cards.BLUE))
        if not all(limits) or not all(limits.values()):
            raise Refused("A ceiling needs both: which setting, and its value.")
        read = {name: None if text.strip().casefold() in REMOVED else text for name, text in limits.items()}
        change = await house.budget(member, where, **read)
        return Shown(view=parts.layout(parts.text(head, wording.changed(change), *wording.steps(change.steps)),
                                       colour=cards.GREEN))  # fmt: skip

    await respond(interaction, "budget", work)


def server(typed: str) -> str:
    """Return the typed server as the rules name it. Raises `Refused` (422)."""
    if typed.strip() == EVERYWHERE:
        return EVERYWHERE
    found = GUILD.fullmatch(typed.strip())
    if found is None:
        raise Refused(f"“{shortened(typed, 40)}” is no server. {WHICH}")
    return f"discord:{found[1]}"


def servers(interaction: Interaction) -> dict[str, str]:
    """Return every server that the bot is in, for operators; none for anybody else."""
    if interaction.user.id not in interaction.client.keepers:
        return {}
    return {EVERYWHERE: "Every server"} | {
        f"discord:{guild.id}": f"{guild.name} ({guild.id})" for guild in interaction.client.guilds
    }


def _named(interaction: Interaction, where: str) -> str:
    if where == EVERYWHERE:
        return "every server"
    guild = interaction.client.get_guild(int(where.rpartition(":")[2]))
    return parts.name(guild.name if guild else where)


def _line(rule: Rule) -> str:
    return f"{wording.title(rule.setting)} · **{wording.said(rule.setting, rule.value)}**"
