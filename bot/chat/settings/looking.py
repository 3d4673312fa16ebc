"""Looking at the rules: the overview, the exceptions, what holds for one member and why, and the history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from discord import ui

from bot.access import forbidden
from bot.chat.settings import cards, wording
from bot.chat.settings.asked import Shown, respond
from bot.desk.administration import undoing
from bot.sentences import quoted
from bot.views import Member

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.chat.settings.presses import Press
    from bot.desk.administration import Administration
    from bot.rules.telling import Explained

DEEP = 500  # changes that are kept
_MARK = re.compile(r"§(channel|role|user)([0-9]{1,20})§")
_MENTIONS = {"channel": "<#", "role": "<@&", "user": "<@"}


def administration(interaction: Interaction) -> Administration:
    return interaction.client.desk.administration


async def overview(interaction: Interaction, member: Member, notice: Sequence[ui.Item] = ()) -> Shown:
    """Everything at a glance, under `notice`."""
    rules = await administration(interaction).rules(member.guild)
    terms = await administration(interaction).terms(Member("", "", member.guild))  # of somebody without exceptions
    return Shown(view=cards.overview(terms, rules, notice))


async def show(interaction: Interaction, press: Press | None = None) -> None:
    await respond(interaction, "settings", lambda member: overview(interaction, member))


async def page(interaction: Interaction, press: Press) -> None:
    """A page of the rules for single channels, roles or members."""

    async def work(member: Member) -> Shown:
        rules = await administration(interaction).rules(member.guild)
        return Shown(view=cards.exceptions(press.scope(0), rules, press.number()))

    await respond(interaction, "settings", work)


async def explain(interaction: Interaction, who: Asked, setting: str = "") -> None:
    """What holds for somebody, who decides it, and what they have used; and a way to change it for them."""

    async def work(member: Member) -> Shown:
        asked = replace(who, channel=who.channel or member.channel)  # here, where none was named
        found = await administration(interaction).explain(
            member.guild, asked.member(member.guild), setting or None, names=asked.marks()
        )
        decided = [one for one in found if one.rule is not None or one.setting == setting]
        said = [explained(one) for one in decided]
        said += _defaults([one for one in found if one not in decided])
        head = f"## What holds for <@{asked.user}>" + (f" in <#{asked.channel}>" if asked.channel else "")
        return Shown(view=cards.explanation(head, said, asked.user))

    await respond(interaction, "explain", work)


def _defaults(found: Sequence[Explained]) -> list[str]:
    """What no rule decides, in one small line each for what is counted and what is not."""
    named = [one for one in found if one.setting in (*wording.EACH, "blocked")]
    used = [f"{wording.title(one.setting)} {quoted(one.used, 60)}" for one in named if one.used]
    rest = [f"{wording.title(one.setting)} {quoted(one.value, 60)}" for one in named if not one.used]
    shown = (("By this bot's defaults, used: ", used), ("No rules for: ", rest))
    return [f"-# {head}{', '.join(each)}." for head, each in shown if each]


async def explain_chosen(interaction: Interaction, press: Press) -> None:
    """The same for a member that was picked on the overview."""
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
        """Names that outlast escaping: `_mentioned` makes mentions of them."""
        found = {role: f"§role{role}§" for role in self.roles} | {self.channel: f"§channel{self.channel}§"}
        return found | {f"discord:{self.user}": f"§user{self.user}§"}


def explained(one: Explained) -> str:
    """A setting as it holds, in two short lines."""
    used = f" · {quoted(one.used, 60)} used" if one.used else ""
    soon = f", frees <t:{round(one.frees)}:R>" if one.frees is not None else ""
    why = one.sentence.removeprefix(f"{one.setting} is {one.value}: ")
    return f"{wording.title(one.setting)} · **{quoted(one.value, 90)}**{used}{soon}\n-# {_mentioned(why)}"


def _mentioned(sentence: str) -> str:
    return _MARK.sub(lambda found: f"{_MENTIONS[found[1]]}{found[2]}>", quoted(sentence, 400))


async def log(interaction: Interaction, press: Press | None = None) -> None:
    await respond(interaction, "settings", lambda member: history(interaction, member, press.number() if press else 0))


async def history(interaction: Interaction, member: Member, page: int, notice: Sequence[ui.Item] = ()) -> Shown:
    """One page of what was changed, the newest first, each with its Undo."""
    changes = await administration(interaction).changes(member.guild, DEEP)
    mine = {one.number for one in changes if not any(forbidden(action, member) for action in undoing(one))}
    return Shown(view=cards.history(changes, page, mine, notice))
