"""Deletion of a job's pictures: a confirmation, then removal from every destination.

The permission was checked before, and the moderation checks it again. If Discord does not let us delete a message, the
presser is told so; the pictures are deleted from our side all the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import aiohttp
import discord
from discord.http import Route

from bot.chat import rows
from bot.chat.answer import member_of
from bot.chat.called import WORDLESS
from bot.chat.presenter import Card
from bot.chat.quiet import QUIET
from bot.sentences import quoted
from engine.job import Recipe

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Delivery, Member, Role, View

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

OF_ANSWER = "/webhooks/{webhook_id}/{webhook_token}/messages/{message_id}"
LEFT = "One of its messages stays: Discord does not let me delete it. The pictures are deleted on this side."


async def confirm(interaction: Interaction, view: View) -> None:
    """Ask the presser, in private, to confirm."""
    several = len(view.pictures) > 1
    what = f"the {len(view.pictures)} pictures" if several else "the picture"
    what = "all pictures of the walk" if isinstance(view.recipe, Recipe) and view.recipe.walk else what
    whose = "" if view.member_id == member_of(interaction).id else f" of {quoted(view.member_name, 64)}"
    said = f"Delete {what} of **{quoted(view.prompt or WORDLESS, 300)}**{whose} for good, with all upscaled copies? "
    card = Card(f"{said}This cannot be undone.", rows.erasing(view.id))
    controls = interaction.client.controls(card) or discord.utils.MISSING
    await interaction.response.send_message(card.content, view=controls, ephemeral=True, allowed_mentions=QUIET)


async def erase(interaction: Interaction, view: View) -> None:
    """Delete after the confirmation; the result replaces the question."""
    await interaction.response.defer()
    said = await delete(interaction.client, view.id, member_of(interaction))
    await interaction.edit_original_response(content=said, view=None)


async def delete(client: DarkroomClient, job: str, member: Member) -> str:
    """Delete a job and its messages everywhere; return what happened. Raises `Refused`."""
    done = await client.desk.moderation.delete(job, member)
    left = False
    for one, shown in done.shown.items():
        left |= not await _take_away(client, one, shown)
        left |= not await films_away(client, one, done.films.get(one, ()))
    return f"{done.sentence} {LEFT}" if left else done.sentence


async def _take_away(client: DarkroomClient, job: str, shown: Mapping[Role, Delivery]) -> bool:
    """Delete the job's messages; return False if one stays."""
    gone: list[bool] = []
    for role, delivery in shown.items():
        if delivery.place.kind != "discord":
            continue
        if delivery.delivered is None:  # its final is not due any more: the courier must not post it again
            await client.desk.deliveries.delivered(job, role)
        if delivery.message:
            gone.append(await _removed(client, job, delivery))
    return all(gone)


async def films_away(client: DarkroomClient, job: str, films: Iterable[Delivery]) -> bool:
    """Delete these messages with a job's film; return False if one stays."""
    left = False
    for film in films:
        if await _removed(client, job, film):
            await client.desk.deliveries.unfilmed(job, film.message)
        else:
            left = True
    return not left


async def _removed(client: DarkroomClient, job: str, delivery: Delivery) -> bool:
    for route in routes(delivery):
        try:
            await client.http.request(route)
        except discord.NotFound as error:
            if error.code == 10008:  # deleted already
                return True
            log.info("job %s: %s", job, error)
        except (discord.HTTPException, aiohttp.ClientError, OSError) as error:
            log.warning("job %s: its message was not deleted: %s", job, error)
        else:
            return True
    return False


def routes(delivery: Delivery) -> Iterable[Route]:
    """Yield the routes that delete a message: by the interaction's token, then as a message of its channel.

    The token also works where the bot cannot see the channel.
    """
    where, message = delivery.place.where, delivery.message
    if where.get("token") and time.time() < float(where.get("token_until") or 0):
        yield Route(
            "DELETE", OF_ANSWER, webhook_id=int(where["application"]), webhook_token=where["token"], message_id=message
        )
    if where.get("channel"):
        yield Route(
            "DELETE", "/channels/{channel_id}/messages/{message_id}", channel_id=where["channel"], message_id=message
        )
