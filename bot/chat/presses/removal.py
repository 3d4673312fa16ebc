"""Deleting a job's pictures: asked once more, then taken away wherever they are shown.

Who may was decided before, and by the moderation once more. A message that Discord does not let us delete says so to
whoever deleted; its pictures are gone from our side all the same.
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
LEFT = "A message of it could not be taken away: Discord does not let me. Its pictures are gone from here."


async def confirm(interaction: Interaction, view: View) -> None:
    """The question, for whoever pressed alone."""
    several = len(view.pictures) > 1
    what = f"the {len(view.pictures)} pictures" if several else "the picture"
    what = "all pictures of the walk" if isinstance(view.recipe, Recipe) and view.recipe.walk else what
    whose = "" if view.member_id == member_of(interaction).id else f" of {quoted(view.member_name, 64)}"
    said = f"Delete {what} of **{quoted(view.prompt or WORDLESS, 300)}**{whose} for good, with all enlargements? "
    card = Card(f"{said}This cannot be undone.", rows.erasing(view.id))
    controls = interaction.client.controls(card) or discord.utils.MISSING
    await interaction.response.send_message(card.content, view=controls, ephemeral=True, allowed_mentions=QUIET)


async def erase(interaction: Interaction, view: View) -> None:
    """Meant. The question becomes the answer."""
    await interaction.response.defer()
    said = await delete(interaction.client, view.id, member_of(interaction))
    await interaction.edit_original_response(content=said, view=None)


async def delete(client: DarkroomClient, job: str, member: Member) -> str:
    """Delete a job and empty every place where it is shown; says what happened. Raises `Refused`."""
    done = await client.desk.moderation.delete(job, member)
    left = False
    for one, shown in done.shown.items():
        left |= not await _take_away(client, one, shown)
        left |= not await films_away(client, one, done.films.get(one, ()))
    return f"{done.sentence} {LEFT}" if left else done.sentence


async def _take_away(client: DarkroomClient, job: str, shown: Mapping[Role, Delivery]) -> bool:
    """False if a message of it stays."""
    gone: list[bool] = []
    for role, delivery in shown.items():
        if delivery.place.kind != "discord":
            continue
        if delivery.delivered is None:  # its last word is not owed any more: the courier must not post it anew
            await client.desk.deliveries.delivered(job, role)
        if delivery.message:
            gone.append(await _removed(client, job, delivery))
    return all(gone)


async def films_away(client: DarkroomClient, job: str, films: Iterable[Delivery]) -> bool:
    """Take these messages with a job's film away; False if one stays."""
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
    """By the interaction's token, which reaches also where we may not look, then as a message of its channel."""
    where, message = delivery.place.where, delivery.message
    if where.get("token") and time.time() < float(where.get("token_until") or 0):
        yield Route(
            "DELETE", OF_ANSWER, webhook_id=int(where["application"]), webhook_token=where["token"], message_id=message
        )
    if where.get("channel"):
        yield Route(
            "DELETE", "/channels/{channel_id}/messages/{message_id}", channel_id=where["channel"], message_id=message
        )
