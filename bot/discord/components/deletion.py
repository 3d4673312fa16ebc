"""Deletion of a job's pictures: a confirmation, then removal from every destination.

The caller has checked the permission, and the moderation service checks it again. If Discord does not let the bot
delete a message, it tells the presser; it deletes the stored pictures all the same. A member's data deletion uses
`delete_message`, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
import discord
from discord.http import Route

from bot.discord.cards import button_layout
from bot.discord.cards.job_cards import NO_PROMPT, Card
from bot.discord.responses import NO_MENTIONS, member_of
from bot.domain.texts import escape_discord
from engine.contract import Recipe

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient, Interaction
    from bot.domain.dto import Delivery, DeliveryRole, JobView, Member


log = logging.getLogger(__name__)
WEBHOOK_MESSAGE_ROUTE = "/webhooks/{webhook_id}/{webhook_token}/messages/{message_id}"
CHANNEL_MESSAGE_ROUTE = "/channels/{channel_id}/messages/{message_id}"
UNREACHABLE_ERRORS = (
    discord.DiscordServerError,
    discord.RateLimited,
    aiohttp.ClientError,
    OSError,
    RuntimeError,  # the session is closed
)
MESSAGE_LEFT = "One of its messages stays: Discord does not let me delete it. The pictures are deleted on this side."


async def send_confirmation(interaction: Interaction, view: JobView) -> None:
    """Ask the presser, in private, to confirm."""
    has_several = len(view.pictures) > 1
    subject = f"the {len(view.pictures)} pictures" if has_several else "the picture"
    subject = "all pictures of the walk" if isinstance(view.task, Recipe) and view.task.interpolation else subject
    author = "" if view.member_id == member_of(interaction).id else f" of {escape_discord(view.member_name, 64)}"
    prompt = escape_discord(view.prompt or NO_PROMPT, 300)
    question = f"Delete {subject} of **{prompt}**{author} for good, with all upscaled copies? This cannot be undone."
    card = Card(question, button_layout.build_confirm_rows(view.id))
    buttons = interaction.client.build_view(card) or discord.utils.MISSING
    await interaction.response.send_message(card.content, view=buttons, ephemeral=True, allowed_mentions=NO_MENTIONS)


async def delete_confirmed(interaction: Interaction, view: JobView) -> None:
    """Delete after the confirmation; the result replaces the question."""
    await interaction.response.defer()
    result = await delete_job(interaction.client, view.id, member_of(interaction))
    await interaction.edit_original_response(content=result, view=None)


async def delete_job(client: DarkroomClient, job: str, member: Member) -> str:
    """Delete a job and its messages everywhere; return what happened. Raises `UserError`."""
    deletion = await client.services.moderation.delete_pictures(job, member)
    has_left = False
    for job_id, deliveries in deletion.deliveries.items():
        has_left |= not await _delete_messages(client, job_id, deliveries)
        has_left |= not await delete_films(client, job_id, deletion.films.get(job_id, ()))
    return f"{deletion.sentence} {MESSAGE_LEFT}" if has_left else deletion.sentence


async def _delete_messages(client: DarkroomClient, job: str, deliveries: Mapping[DeliveryRole, Delivery]) -> bool:
    """Delete the job's messages; return False if one stays."""
    results: list[bool] = []
    for role, delivery in deliveries.items():
        if delivery.destination.kind != "discord":
            continue
        if delivery.delivered_at is None:  # the courier must not post its final again
            await client.services.deliveries.mark_delivered(job, role)
        if delivery.message:
            results.append(await delete_message(client, job, delivery))
    return all(results)


async def delete_films(client: DarkroomClient, job: str, films: Iterable[Delivery]) -> bool:
    """Delete these messages with a job's film; return False if one stays."""
    has_left = False
    for film in films:
        if await delete_message(client, job, film):
            await client.services.deliveries.forget_film(job, film.message)
        else:
            has_left = True
    return not has_left


async def delete_message(
    client: DarkroomClient, job: str, delivery: Delivery, *, raise_unreachable: bool = False
) -> bool:
    """Delete one message by the first route that works; return False if none does.

    `raise_unreachable`: raise `ConnectionError` if Discord is unreachable, so that the caller tries again later;
    otherwise the next route follows.
    """
    unreachable_errors, level = (UNREACHABLE_ERRORS, logging.INFO) if raise_unreachable else ((), logging.WARNING)
    for route in deletion_routes(delivery):
        try:
            await client.http.request(route)
        except discord.NotFound as error:
            if error.code == 10008:  # deleted already
                return True
            log.info("job %s: %s", job, error)
        except unreachable_errors as error:
            raise ConnectionError(f"Discord cannot be reached: {error}") from error
        except (discord.HTTPException, aiohttp.ClientError, OSError) as error:
            log.log(level, "job %s: its message was not deleted: %s", job, error)
        else:
            return True
    return False


def deletion_routes(delivery: Delivery) -> Iterable[Route]:
    """Yield the routes that delete a message: by the interaction's token, then as a message of its channel.

    The token also works where the bot cannot see the channel.
    """
    target = delivery.destination.address
    message = delivery.message
    if target.get("token") and time.time() < float(target.get("token_until") or 0):
        webhook: dict[str, Any] = {"webhook_id": int(target["application"]), "webhook_token": target["token"]}
        yield Route("DELETE", WEBHOOK_MESSAGE_ROUTE, **webhook, message_id=message)
    if target.get("channel"):
        yield Route("DELETE", CHANNEL_MESSAGE_ROUTE, channel_id=target["channel"], message_id=message)
