"""Checks before each command, menu, press and form: the member's rate, the permission table, the server's rules."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from logging import Logger
from typing import TYPE_CHECKING

from bot.discord.permissions import refusal_reason, with_channel_privacy
from bot.discord.responses import member_of, send_error, send_refusal
from bot.domain.errors import UserError
from bot.policy.limits import too_often
from bot.policy.permissions import Action, forbidden_reason, job_ref

if TYPE_CHECKING:
    import discord

    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView, Member

    Interaction = discord.Interaction[DarkroomClient]

CHARGED = "charged"  # in an interaction's extras: its member's rate has paid for it
# They make jobs, or cost as much: the services check the rules.
SELF_CHECKED_ACTIONS: tuple[Action, ...] = ("imagine", "blend", "describe", "reproduce")


def check_rate(interaction: discord.Interaction[DarkroomClient], action: Action) -> None:
    """Charge the interaction to its member's rate, once. Raises `UserError` (429)."""
    if interaction.extras.get(CHARGED):
        return
    if wait_seconds := interaction.client.token_buckets.take(f"discord:{interaction.user.id}", action):
        raise too_often(wait_seconds)
    interaction.extras[CHARGED] = True


async def require_permission(
    interaction: discord.Interaction[DarkroomClient], action: Action, view: JobView | None = None
) -> Member:
    """Return the member if they may do this (to this job), so soon. Raises `UserError` (403 or 429)."""
    check_rate(interaction, action)
    member = member_of(interaction)
    subject = None if view is None else job_ref(with_channel_privacy(view, member))
    if reason := forbidden_reason(action, member, subject, in_direct_message=interaction.guild_id is None):
        raise UserError(refusal_reason(reason, view), 403)
    if action not in SELF_CHECKED_ACTIONS:
        await interaction.client.services.rule_admin.check_command(member, action)
    return member


@asynccontextmanager
async def reply_on_error(interaction: Interaction) -> AsyncGenerator[None]:
    """Catch a `UserError` from the body and show it to the member only."""
    try:
        yield
    except UserError as error:
        await send_refusal(interaction, error.sentence)


@asynccontextmanager
async def report_errors(interaction: Interaction, log: Logger, message: str, *args: object) -> AsyncGenerator[None]:
    """As `reply_on_error`; also log any other error of the body and apologise: discord.py would not respond."""
    try:
        async with reply_on_error(interaction):
            yield
    except Exception:
        log.exception(message, *args)
        await send_error(interaction)
