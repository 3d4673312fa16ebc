"""The first response to an interaction, within Discord's three seconds: a card for each job, or a refusal.

The studio records the job before anything is sent. The response's message id is recorded right after. If that fails or
comes late, the courier finds the message by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import discord

from bot.chat import presenter
from bot.chat.channel import check_channel, warning
from bot.chat.notices import link
from bot.chat.sight import sees
from bot.chat.standing import permissions
from bot.refused import Refused
from bot.views import Member, Place, Ticket

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

Ask = Callable[[Member, Place], Awaitable[Sequence[Ticket]]]

SOON = 1.5  # seconds until we defer the response: Discord waits three
GLANCE = 0.7  # seconds to read preference and rules before we defer
TOKEN_LIVES = 14 * 60.0  # seconds that we use a token; Discord accepts it for fifteen minutes
BROKEN = "Something broke on our side. It is logged; please try again."


def member_of(interaction: Interaction) -> Member:
    """Return who triggered the interaction, with their permissions here. A direct conversation has no moderators."""
    user, guild, channel = interaction.user, interaction.guild, interaction.channel
    may = permissions(user)
    return Member(
        f"discord:{user.id}",
        user.display_name,
        guild_of(interaction),
        moderator=may.manage_messages,
        admin=may.manage_guild,
        owner=guild is not None and guild.owner_id == user.id,
        house=user.id in interaction.client.keepers,
        roles=tuple(str(role.id) for role in user.roles) if isinstance(user, discord.Member) else (),
        channel=str(getattr(channel, "parent_id", None) or interaction.channel_id or ""),
        age_restricted=_for_adults(channel),
        sees=partial(sees, user),
    )


def _for_adults(channel: object) -> bool:
    """Return whether the channel, or a thread's parent, is age-restricted."""
    asked = getattr(channel, "is_nsfw", None)  # a direct conversation has no such method
    return asked is not None and bool(asked())


def guild_of(interaction: Interaction) -> str:
    """Return the guild's id. Each direct conversation counts as a guild."""
    return f"discord:{interaction.guild_id}" if interaction.guild_id else f"discord:dm:{interaction.user.id}"


def place_of(interaction: Interaction, now: float) -> Place:
    """Return the destination of the response, with the token that edits it."""
    return Place(
        "discord",
        {
            "guild": str(interaction.guild_id or ""),
            "channel": str(interaction.channel_id or ""),
            "user": str(interaction.user.id),
            "application": str(interaction.application_id),
            "token": interaction.token,
            "token_until": str(now + TOKEN_LIVES),
            "limit": str(interaction.filesize_limit),
        },
    )


async def answer(interaction: Interaction, ask: Ask, *, again: bool = False) -> None:
    """Run `ask` and send a card for each job; with `again` (a double click) link to the first job instead.

    Until this returns, the courier does not treat a missing message as lost, however long Discord takes.
    """
    answering = interaction.client.answering
    answering.add(interaction.token)
    try:
        await _answer(interaction, ask, again)
    finally:
        answering.discard(interaction.token)


async def _answer(interaction: Interaction, ask: Ask, again: bool) -> None:
    try:
        check_channel(interaction)
        asked = ask(member_of(interaction), place_of(interaction, time.time()))
        tickets, announced = await _in_time(interaction, asked)
    except Refused as refused:
        await refuse(interaction, refused.sentence)
        return
    if again:
        link = await _link(interaction, tickets[0].job)
        await say(interaction, presenter.already(link))
        return
    for number, ticket in enumerate(tickets):
        try:
            message = await _show(interaction, ticket, announced, first=number == 0)
            await interaction.client.desk.deliveries.moved(ticket.job, message=str(message))
        except Exception as error:  # the job is admitted anyway, and the courier finds or posts its message
            known = isinstance(error, discord.HTTPException)
            log.warning("job %s: its answer was not sent or not recorded: %s", ticket.job, error, exc_info=not known)
    await _warn(interaction, tickets[-1])


async def _warn(interaction: Interaction, last: Ticket) -> None:
    """Tell the member what the bot's missing permissions will prevent here later."""
    said = warning(interaction, last.eta, TOKEN_LIVES)
    if not said:
        return
    try:
        quiet = discord.AllowedMentions.none()
        await interaction.followup.send(f"-# {said}", ephemeral=True, allowed_mentions=quiet)
    except discord.HTTPException as error:
        log.warning("a member was not told of missing permissions: %s", error)


async def refuse(interaction: Interaction, sentence: str) -> None:
    """Show the refusal to the member only."""
    await say(interaction, presenter.refusal(sentence))


async def sorry(interaction: Interaction) -> None:
    """Apologise after an error of ours that is already logged, so that the member does not wait at a spinner."""
    try:
        await say(interaction, BROKEN)
    except discord.HTTPException as error:
        log.warning("an apology could not be sent: %s", error)


async def _in_time(
    interaction: Interaction, asked: Awaitable[Sequence[Ticket]]
) -> tuple[Sequence[Ticket], bool | None]:
    """Return the jobs. The second value is None, or whether the response had to be deferred as ephemeral."""
    task = asyncio.ensure_future(asked)
    done, _ = await asyncio.wait({task}, timeout=SOON)
    announced: bool | None = None
    if not done:
        announced = await _likely_private(interaction)
        await interaction.response.defer(thinking=True, ephemeral=announced)
    return await task, announced


async def _likely_private(interaction: Interaction) -> bool:
    """Guess from preference and rules whether the results are private, as far as they load in time.

    The jobs themselves decide in the end.
    """
    desk, member = interaction.client.desk, member_of(interaction)
    try:
        async with asyncio.timeout(GLANCE):
            results = (await desk.administration.terms(member)).results
            return results == "private" or (
                results == "choice" and (await desk.preferences.of(member.id)).results == "private"
            )
    except (TimeoutError, ConnectionError):
        return False


async def _show(interaction: Interaction, ticket: Ticket, announced: bool | None, *, first: bool) -> int:
    """Send the card of `ticket`, ephemeral if the job is private. Return its message's id."""
    card = presenter.accepted(ticket, interaction.user.display_name, time.time())
    view, quiet = interaction.client.controls(card) or discord.utils.MISSING, discord.AllowedMentions.none()
    if first and announced is None:
        sent = await interaction.response.send_message(
            card.content, view=view, ephemeral=ticket.private, allowed_mentions=quiet
        )
        return sent.message_id or (await interaction.original_response()).id
    if first and announced == ticket.private:
        return (await interaction.edit_original_response(content=card.content, view=view, allowed_mentions=quiet)).id
    if first:  # deferred with the wrong visibility, which is final: another message replaces it
        await interaction.edit_original_response(content="…", allowed_mentions=quiet)
    message = await interaction.followup.send(
        card.content, view=view, ephemeral=ticket.private, allowed_mentions=quiet, wait=True
    )
    if first:
        await interaction.delete_original_response()
    return message.id


async def say(interaction: Interaction, text: str) -> None:
    """Send a sentence to the member only, even if the response was deferred as public."""
    quiet = discord.AllowedMentions.none()
    if not interaction.response.is_done():
        await interaction.response.send_message(text, ephemeral=True, allowed_mentions=quiet)
        return
    await interaction.edit_original_response(content="…", allowed_mentions=quiet)  # only then may the next be ephemeral
    await interaction.followup.send(text, ephemeral=True, allowed_mentions=quiet)
    await interaction.delete_original_response()


async def _link(interaction: Interaction, job: str) -> str:
    return link((await interaction.client.desk.deliveries.place_of(job)).where)
