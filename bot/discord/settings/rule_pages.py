"""Views of the rules: the overview, the exceptions, what holds for one member and why, and the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from discord import ui

from bot.discord.settings import cards, explanations, texts
from bot.discord.settings.responses import Reply, respond
from bot.domain.dto import Member
from bot.policy.permissions import forbidden_reason
from bot.services.rule_admin import undo_permissions

if TYPE_CHECKING:
    from bot.discord.settings.responses import CardPress, Interaction
    from bot.services.rule_admin import RuleAdmin

HISTORY_LIMIT = 500  # changes in the history


def get_administration(interaction: Interaction) -> RuleAdmin:
    return interaction.client.services.rule_admin


async def build_overview(interaction: Interaction, member: Member, notice: Sequence[ui.Item[Any]] = ()) -> Reply:
    """Return the overview of all settings, under `notice`."""
    rules = await get_administration(interaction).list_rules(member.guild)
    effective_rules = await get_administration(interaction).effective_rules(
        Member("", "", member.guild)
    )  # of a member without exceptions
    costs = texts.describe_model_costs(interaction.client.services.catalog.list_profiles())
    return Reply(view=cards.build_overview(effective_rules, rules, notice, costs))


async def show_overview(interaction: Interaction, press: CardPress | None = None) -> None:
    await respond(interaction, "settings", lambda member: build_overview(interaction, member))


async def show_exceptions_page(interaction: Interaction, press: CardPress) -> None:
    """Show a page of the rules for single channels, roles or members."""

    async def build_reply(member: Member) -> Reply:
        rules = await get_administration(interaction).list_rules(member.guild)
        return Reply(view=cards.build_exceptions(press.scope_at(0), rules, press.number_at()))

    await respond(interaction, "settings", build_reply)


async def show_explanation(interaction: Interaction, target: ExplanationTarget, setting: str = "") -> None:
    """Show what holds for a member, which rule decides it, and their usage; with a way to change it for them."""

    async def build_reply(member: Member) -> Reply:
        placed_target = replace(target, channel=target.channel or member.channel)  # this channel, if none was named
        setting_explanations = await get_administration(interaction).explain(
            member.guild, placed_target.to_member(member.guild), setting or None, names=placed_target.placeholders()
        )
        sections = (
            [("", [explanations.format_entry(explanation) for explanation in setting_explanations])]
            if setting
            else explanations.build_sections(setting_explanations)
        )
        header = f"## What holds for <@{placed_target.user}>" + (
            f" in <#{placed_target.channel}>" if placed_target.channel else ""
        )
        return Reply(view=cards.build_explanation(header, sections, placed_target.user))

    await respond(interaction, "explain", build_reply)


async def explain_picked_member(interaction: Interaction, press: CardPress) -> None:
    """Explain the member that was picked on the overview."""
    data: Mapping[str, Any] = cast(Any, interaction.data) or {}
    resolved: Mapping[str, Any] = data.get("resolved") or {}
    members: Mapping[str, Any] = resolved.get("members") or {}
    resolved_member = members.get(press.first_value(), {})
    await show_explanation(
        interaction,
        ExplanationTarget(press.first_value(), (*resolved_member.get("roles", ()), str(interaction.guild_id))),
    )


@dataclass(frozen=True)
class ExplanationTarget:
    """Whom an explanation is about: a user's id, the ids of their roles, and a channel's or none."""

    user: str
    roles: tuple[str, ...] = ()
    channel: str = ""

    def to_member(self, guild: str) -> Member:
        return Member(f"discord:{self.user}", self.user, guild, roles=self.roles, channel=self.channel)

    def placeholders(self) -> dict[str, str]:
        """Return the placeholders of their names in an explanation."""
        names = {role: explanations.make_placeholder("role", role) for role in self.roles}
        names[self.channel] = explanations.make_placeholder("channel", self.channel)
        return names | {f"discord:{self.user}": explanations.make_placeholder("user", self.user)}


async def show_history(interaction: Interaction, press: CardPress | None = None) -> None:
    await respond(
        interaction, "settings", lambda member: build_history(interaction, member, press.number_at() if press else 0)
    )


async def build_history(
    interaction: Interaction, member: Member, page: int, notice: Sequence[ui.Item[Any]] = ()
) -> Reply:
    """Return one page of changes, the newest first, each with its Undo."""
    changes = await get_administration(interaction).list_changes(member.guild, HISTORY_LIMIT)
    undoable = {
        change.number
        for change in changes
        if not any(forbidden_reason(action, member) for action in undo_permissions(change))
    }
    return Reply(view=cards.build_history(changes, page, undoable, notice))
