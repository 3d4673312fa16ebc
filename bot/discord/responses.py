"""The first response to an interaction, within Discord's three seconds: a card for each job, or a refusal.

The job service records the job before the response goes out; then its message id is recorded. If that fails or comes
late, the courier finds the message by itself. Also reads from an interaction who asked, and where the response goes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import discord

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import message_link
from bot.discord.permissions import (
    can_see_channel,
    check_can_attach,
    guild_permissions,
    permission_warning,
    private_thread_of,
)
from bot.domain.dto import AcceptedJob, Destination, Member
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)
JobSubmitter = Callable[[Member, Destination], Awaitable[Sequence[AcceptedJob]]]
NO_MENTIONS = discord.AllowedMentions.none()
DEFER_AFTER = 1.5  # seconds until we defer the response: Discord waits three
RULES_TIMEOUT = 0.7  # seconds to read preference and rules before we defer
TOKEN_LIFETIME = 14 * 60.0  # seconds that we use a token; Discord accepts it for fifteen minutes
INTERNAL_ERROR = "Something broke on our side. It is logged; please try again."


def member_of(interaction: Interaction) -> Member:
    """Return the member who triggered the interaction, with their permissions here. A direct conversation has no
    moderators.
    """
    user = interaction.user
    guild = interaction.guild
    channel = interaction.channel
    member_permissions = guild_permissions(user)
    return Member(
        f"discord:{user.id}",
        user.display_name,
        guild_of(interaction),
        is_moderator=member_permissions.manage_messages,
        is_admin=member_permissions.manage_guild,
        is_owner=guild is not None and guild.owner_id == user.id,
        is_operator=user.id in interaction.client.operator_ids,
        roles=tuple(str(role.id) for role in user.roles) if isinstance(user, discord.Member) else (),
        channel=str(getattr(channel, "parent_id", None) or interaction.channel_id or ""),
        thread=private_thread_of(channel),
        age_restricted=_is_age_restricted(channel),
        can_see=partial(can_see_channel, user),
    )


def _is_age_restricted(channel: object) -> bool:
    """Return whether the channel, or a thread's parent, is age-restricted."""
    is_nsfw = getattr(channel, "is_nsfw", None)  # a direct conversation has no such method
    return is_nsfw is not None and bool(is_nsfw())


def guild_of(interaction: Interaction) -> str:
    """Return the guild's id. Each direct conversation counts as a guild."""
    return f"discord:{interaction.guild_id}" if interaction.guild_id else f"discord:dm:{interaction.user.id}"


def destination_of(interaction: Interaction, now: float) -> Destination:
    """Return the destination of the response, with the token that edits it."""
    return Destination(
        "discord",
        {
            "guild": str(interaction.guild_id or ""),
            "channel": str(interaction.channel_id or ""),
            "user": str(interaction.user.id),
            "application": str(interaction.application_id),
            "token": interaction.token,
            "token_until": str(now + TOKEN_LIFETIME),
            "limit": str(interaction.filesize_limit),
        },
    )


async def respond_with_jobs(interaction: Interaction, submit: JobSubmitter, *, is_repeat: bool = False) -> None:
    """Run `submit` and send a card for each job; with `is_repeat` (a double click) link to the first job instead.

    Until this returns, the courier does not treat a missing message as lost, however long Discord takes.
    """
    pending_tokens = interaction.client.pending_tokens
    pending_tokens.add(interaction.token)
    try:
        await _respond_with_jobs(interaction, submit, is_repeat)
    finally:
        pending_tokens.discard(interaction.token)


async def _respond_with_jobs(interaction: Interaction, submit: JobSubmitter, is_repeat: bool) -> None:
    try:
        check_can_attach(interaction)
        submission = submit(member_of(interaction), destination_of(interaction, time.time()))
        accepted_jobs, deferred_ephemeral = await _await_or_defer(interaction, submission)
    except UserError as error:
        await send_refusal(interaction, error.sentence)
        return
    if is_repeat:
        address = await _message_address(interaction, accepted_jobs[0].job)
        await send_ephemeral(interaction, job_cards.render_duplicate(address))
        return
    for number, accepted_job in enumerate(accepted_jobs):
        try:
            message = await _send_card(interaction, accepted_job, deferred_ephemeral, is_first=number == 0)
            await interaction.client.services.deliveries.update_address(accepted_job.job, message=str(message))
        except Exception as error:  # the job is admitted anyway, and the courier finds or posts its message
            is_discord_error = isinstance(error, discord.HTTPException)
            text = "job %s: its answer was not sent or not recorded: %s"
            log.warning(text, accepted_job.job, error, exc_info=not is_discord_error)
    await _warn_of_permissions(interaction, accepted_jobs[-1])


async def _await_or_defer(
    interaction: Interaction, submission: Awaitable[Sequence[AcceptedJob]]
) -> tuple[Sequence[AcceptedJob], bool | None]:
    """Return the jobs. The second value is None, or whether the response had to be deferred as ephemeral."""
    task = asyncio.ensure_future(submission)
    done, _ = await asyncio.wait({task}, timeout=DEFER_AFTER)
    deferred_ephemeral: bool | None = None
    if not done:
        deferred_ephemeral = await _is_likely_private(interaction)
        await interaction.response.defer(thinking=True, ephemeral=deferred_ephemeral)
    return await task, deferred_ephemeral


async def _is_likely_private(interaction: Interaction) -> bool:
    """Guess from preference and rules whether the results are private, as far as they load in time.

    In the end, the jobs themselves decide.
    """
    services = interaction.client.services
    member = member_of(interaction)
    try:
        async with asyncio.timeout(RULES_TIMEOUT):
            results = (await services.rule_admin.effective_rules(member)).results
            return results == "private" or (
                results == "choice" and (await services.preferences.load_preference(member.id)).results == "private"
            )
    except (TimeoutError, ConnectionError):
        return False


async def _send_card(
    interaction: Interaction, accepted_job: AcceptedJob, deferred_ephemeral: bool | None, *, is_first: bool
) -> int:
    """Send the card of `accepted_job`, ephemeral if the job is private. Return its message's id."""
    card = job_cards.render_accepted(accepted_job, interaction.user.display_name, time.time())
    view = interaction.client.build_view(card) or discord.utils.MISSING
    if is_first and deferred_ephemeral is None:
        response = await interaction.response.send_message(
            card.content, view=view, ephemeral=accepted_job.is_private, allowed_mentions=NO_MENTIONS
        )
        return response.message_id or (await interaction.original_response()).id
    if is_first and deferred_ephemeral == accepted_job.is_private:
        message = await interaction.edit_original_response(
            content=card.content, view=view, allowed_mentions=NO_MENTIONS
        )
        return message.id
    if is_first:  # deferred with the wrong visibility, which cannot change: another message replaces it
        await interaction.edit_original_response(content="…", allowed_mentions=NO_MENTIONS)
    message = await interaction.followup.send(
        card.content, view=view, ephemeral=accepted_job.is_private, allowed_mentions=NO_MENTIONS, wait=True
    )
    if is_first:
        await interaction.delete_original_response()
    return message.id


async def _message_address(interaction: Interaction, job: str) -> str:
    return message_link((await interaction.client.services.deliveries.answer_destination(job)).address)


async def _warn_of_permissions(interaction: Interaction, last_job: AcceptedJob) -> None:
    """Tell the member what the bot's missing permissions will prevent here later."""
    text = permission_warning(interaction, last_job.eta, TOKEN_LIFETIME)
    if not text:
        return
    try:
        await interaction.followup.send(f"-# {text}", ephemeral=True, allowed_mentions=NO_MENTIONS)
    except discord.HTTPException as error:
        log.warning("a member was not told of missing permissions: %s", error)


async def send_refusal(interaction: Interaction, sentence: str) -> None:
    """Show the refusal to the member only."""
    await send_ephemeral(interaction, job_cards.render_refusal(sentence))


async def send_error(interaction: Interaction) -> None:
    """Apologise after an error that is already logged, so that the member does not wait at a spinner."""
    try:
        await send_ephemeral(interaction, INTERNAL_ERROR)
    except discord.HTTPException as error:
        log.warning("an apology could not be sent: %s", error)


async def send_ephemeral(interaction: Interaction, text: str) -> None:
    """Send a sentence to the member only, even if the response was deferred as public."""
    if not interaction.response.is_done():
        await interaction.response.send_message(text, ephemeral=True, allowed_mentions=NO_MENTIONS)
        return
    # Discord makes the next message ephemeral only after an edit of the deferred one.
    await interaction.edit_original_response(content="…", allowed_mentions=NO_MENTIONS)
    await interaction.followup.send(text, ephemeral=True, allowed_mentions=NO_MENTIONS)
    await interaction.delete_original_response()
