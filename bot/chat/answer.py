"""The first answer to an interaction: within three seconds, from a request to its card, or to a refusal.

The studio records the job before anything is sent; the answer's message id is recorded right after. If that fails or
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

SOON = 1.5  # seconds until we tell Discord that the answer takes longer: it waits three
GLANCE = 0.7  # seconds that a look at preference and rules may take before that
TOKEN_LIVES = 14 * 60.0  # of the fifteen minutes that Discord gives a token
BROKEN = "Something broke on our side. It is logged; please try again."


def member_of(interaction: Interaction) -> Member:
    """Who pressed or typed, and with what standing where they are. Alone with the bot there is nothing to moderate."""
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
    """Whether the channel, or a thread's parent, is age-restricted."""
    asked = getattr(channel, "is_nsfw", None)  # a direct conversation has none
    return asked is not None and bool(asked())


def guild_of(interaction: Interaction) -> str:
    """The server; each direct conversation is one of its own."""
    return f"discord:{interaction.guild_id}" if interaction.guild_id else f"discord:dm:{interaction.user.id}"


def place_of(interaction: Interaction, now: float) -> Place:
    """Where the answer will stand, and what it can be edited with."""
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
    """Ask the studio and answer with a card for each job; `again`: a slip of the finger gets a link to the first.

    Until it is done the courier takes no missing message for lost, however long Discord takes.
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
        except Exception as error:  # the job is taken whatever happens here, and the courier finds or makes its message
            known = isinstance(error, discord.HTTPException)
            log.warning("job %s: its answer was not sent or not noted: %s", ticket.job, error, exc_info=not known)
    await _warn(interaction, tickets[-1])


async def _warn(interaction: Interaction, last: Ticket) -> None:
    """Say what our permissions will not let us do here later."""
    said = warning(interaction, last.eta, TOKEN_LIVES)
    if not said:
        return
    try:
        quiet = discord.AllowedMentions.none()
        await interaction.followup.send(f"-# {said}", ephemeral=True, allowed_mentions=quiet)
    except discord.HTTPException as error:
        log.warning("a member was not told what is missing: %s", error)


async def refuse(interaction: Interaction, sentence: str) -> None:
    """Tell the member alone."""
    await say(interaction, presenter.refusal(sentence))


async def sorry(interaction: Interaction) -> None:
    """After an error of ours, already logged: the member must not look at a spinner."""
    try:
        await say(interaction, BROKEN)
    except discord.HTTPException as error:
        log.warning("an apology could not be sent: %s", error)


async def _in_time(
    interaction: Interaction, asked: Awaitable[Sequence[Ticket]]
) -> tuple[Sequence[Ticket], bool | None]:
    """The tickets; and where they took so long that an answer had to be announced, whether as a private one."""
    task = asyncio.ensure_future(asked)
    done, _ = await asyncio.wait({task}, timeout=SOON)
    announced: bool | None = None
    if not done:
        announced = await _likely_private(interaction)
        await interaction.response.defer(thinking=True, ephemeral=announced)
    return await task, announced


async def _likely_private(interaction: Interaction) -> bool:
    """What preference and rules say, as far as they can be had at once; the tickets have the last word."""
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
    """Send the card of `ticket`; returns the id of its message. A private one is for its author's eyes alone."""
    card = presenter.accepted(ticket, interaction.user.display_name, time.time())
    view, quiet = interaction.client.controls(card) or discord.utils.MISSING, discord.AllowedMentions.none()
    if first and announced is None:
        sent = await interaction.response.send_message(
            card.content, view=view, ephemeral=ticket.private, allowed_mentions=quiet
        )
        return sent.message_id or (await interaction.original_response()).id
    if first and announced == ticket.private:
        return (await interaction.edit_original_response(content=card.content, view=view, allowed_mentions=quiet)).id
    if first:  # announced as what it is not, which cannot be changed: it gives way to another message
        await interaction.edit_original_response(content="…", allowed_mentions=quiet)
    message = await interaction.followup.send(
        card.content, view=view, ephemeral=ticket.private, allowed_mentions=quiet, wait=True
    )
    if first:
        await interaction.delete_original_response()
    return message.id


async def say(interaction: Interaction, text: str) -> None:
    """A sentence for the member alone, also where the answer was announced as public and late."""
    quiet = discord.AllowedMentions.none()
    if not interaction.response.is_done():
        await interaction.response.send_message(text, ephemeral=True, allowed_mentions=quiet)
        return
    await interaction.edit_original_response(content="…", allowed_mentions=quiet)  # only then may the next be private
    await interaction.followup.send(text, ephemeral=True, allowed_mentions=quiet)
    await interaction.delete_original_response()


async def _link(interaction: Interaction, job: str) -> str:
    return link((await interaction.client.desk.deliveries.place_of(job)).where)
