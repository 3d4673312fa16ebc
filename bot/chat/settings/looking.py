"""Views of the rules: the overview, the exceptions, what holds for one member and why, and the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from discord import ui

from bot.access import forbidden
from bot.chat.settings import cards, explained
from bot.chat.settings.asked import Shown, respond
from bot.desk.administration import undoing
from bot.views import Member

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.chat.settings.presses import Press
    from bot.desk.administration import Administration

DEEP = 500  # changes in the history


def administration(interaction: Interaction) -> Administration:
    return interaction.client.desk.administration


async def overview(interaction: Interaction, member: Member, notice: Sequence[ui.Item] = ()) -> Shown:
    """Return the overview of all settings, under `notice`."""
    rules = await administration(interaction).rules(member.guild)
    terms = await administration(interaction).terms(Member("", "", member.guild))  # of a member without exceptions
    return Shown(view=cards.overview(terms, rules, notice))


async def show(interaction: Interaction, press: Press | None = None) -> None:
    await respond(interaction, "settings", lambda member: overview(interaction, member))


async def page(interaction: Interaction, press: Press) -> None:
    """Show a page of the rules for single channels, roles or members."""

    async def work(member: Member) -> Shown:
        rules = await administration(interaction).rules(member.guild)
        return Shown(view=cards.exceptions(press.scope(0), rules, press.number()))

    await respond(interaction, "settings", work)


async def explain(interaction: Interaction, who: Asked, setting: str = "") -> None:
    """Show what holds for a member, which rule decides it, and their usage; with a way to change it for them."""

    async def work(member: Member) -> Shown:
        asked = replace(who, channel=who.channel or member.channel)  # this channel, if none was named
        found = await administration(interaction).explain(
            member.guild, asked.member(member.guild), setting or None, names=asked.marks()
        )
        said = [("", [explained.entry(one) for one in found])] if setting else explained.groups(found)
        head = f"## What holds for <@{asked.user}>" + (f" in <#{asked.channel}>" if asked.channel else "")
        return Shown(view=cards.explanation(head, said, asked.user))

    await respond(interaction, "explain", work)


async def explain_chosen(interaction: Interaction, press: Press) -> None:
    """Explain the member that was picked on the overview."""
    resolved: Any = (interaction.data or {}).get("resolved") or {}
    there = (resolved.get("members") or {}).get(press.one(), {})
    await explain(interaction, Asked(press.one(), (*there.get("roles", ()), str(interaction.guild_id))))


@dataclass(frozen=True)
class Asked:
    """Whom an explanation is about: a user's id, the ids of their roles, and a channel's or none."""

    user: str
    roles: tuple[str, ...] = ()
    channel: str = ""

    def member(self, guild: str) -> Member:
        return Member(f"discord:{self.user}", self.user, guild, roles=self.roles, channel=self.channel)

    def marks(self) -> dict[str, str]:
        """Return the placeholders of their names in an explanation."""
        found = {role: explained.marked("role", role) for role in self.roles}
        found[self.channel] = explained.marked("channel", self.channel)
        return found | {f"discord:{self.user}": explained.marked("user", self.user)}


async def log(interaction: Interaction, press: Press | None = None) -> None:
    await respond(interaction, "settings", lambda member: history(interaction, member, press.number() if press else 0))


async def history(interaction: Interaction, member: Member, page: int, notice: Sequence[ui.Item] = ()) -> Shown:
    """Return one page of changes, the newest first, each with its Undo."""
    changes = await administration(interaction).changes(member.guild, DEEP)
    mine = {one.number for one in changes if not any(forbidden(action, member) for action in undoing(one))}
    return Shown(view=cards.history(changes, page, mine, notice))
