"""Moderators' decisions about held pictures: look at them in private, show them to all, keep them hidden.

The caller has checked the permission. Knows the services and the messages that show a job; knows nothing of how a
picture is checked.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import discord

from bot.discord.cards import button_layout, job_cards, pictures
from bot.discord.cards.button_layout import MAX_ROW_BUTTONS, Button
from bot.discord.cards.job_cards import MAX_CONTENT, NO_PROMPT, Card, render_refusal
from bot.discord.cards.pictures import UPLOAD_LIMIT, PictureFile, to_discord_file
from bot.discord.components.deletion import delete_films
from bot.discord.responses import NO_MENTIONS, member_of, send_refusal
from bot.domain.dto import Destination
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.pictures import grid
from bot.pictures.moderation_status import held_images, hold_reasons
from bot.services.moderation.picture_review import PictureReview

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import Delivery, DeliveryRole, JobView

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

MAX_LISTED = 20  # jobs of a list: each has a button, and a message has at most 25
NOTHING_HELD = "No picture waits for a moderator here."
UPDATE_FAILED = "Your decision is saved, but this message could not be updated."


async def list_held_jobs(interaction: Interaction) -> None:
    """List the jobs with held pictures, each with a button to look; also private ones, whose cards moderators never
    see.
    """
    try:
        views = await interaction.client.services.get(PictureReview).list_waiting(member_of(interaction), MAX_LISTED)
    except UserError as error:
        await send_refusal(interaction, error.sentence)
        return
    card = _list_card(views)
    buttons = interaction.client.build_view(card) or discord.utils.MISSING
    await interaction.response.send_message(card.content, view=buttons, ephemeral=True, allowed_mentions=NO_MENTIONS)


async def show_held_pictures(interaction: Interaction, view: JobView) -> None:
    """Show the held pictures as spoilers to the presser only, with buttons to decide."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    try:
        pictures = await interaction.client.services.get(PictureReview).load_held_pictures(
            view.id, member_of(interaction)
        )
    except UserError as error:
        await interaction.edit_original_response(content=render_refusal(error.sentence), allowed_mentions=NO_MENTIONS)
        return
    limit = interaction.filesize_limit // len(pictures)
    files = [await asyncio.to_thread(_spoiler_file, index, content, limit) for index, content in pictures]
    missing_note = "" if all(files) else " What is missing here is larger than this server takes."
    card = _review_card(view, missing_note)
    await interaction.edit_original_response(
        content=card.content, attachments=[file for file in files if file], view=interaction.client.build_view(card)
    )


async def decide_picture(interaction: Interaction, button: Button) -> None:
    """Show a picture or keep it hidden, and update every message that shows the job."""
    client = interaction.client
    is_approved = button.kind == "approve"
    try:
        view = await client.services.get(PictureReview).decide(
            button.job, button.index or 0, member_of(interaction), show=is_approved
        )
    except UserError as error:
        await send_refusal(interaction, error.sentence)
        return
    await interaction.response.defer()
    try:
        if not is_approved:  # a member may have made a film while the picture was shown
            await delete_films(client, view.id, await client.services.deliveries.list_films(view.id))
        await _refresh_messages(interaction, view)
        if is_approved and view.is_private:
            await _send_to_author(client, view)
    except Exception:  # the decision stands; the apology must not replace the message
        log.exception("job %s: its message was not renewed", button.job)
        await interaction.followup.send(UPDATE_FAILED, ephemeral=True)


async def _send_to_author(client: DarkroomClient, view: JobView) -> None:
    """Add a direct message, which the courier sends within a minute: a private response cannot be edited any more."""
    user_id = view.member_id.removeprefix("discord:")
    if user_id.isdecimal():
        await client.services.deliveries.add_destination(view.id, "direct", Destination("discord", {"user": user_id}))


async def _refresh_messages(interaction: Interaction, view: JobView) -> None:
    client = interaction.client
    pressed_message = interaction.message
    deliveries = await client.services.deliveries.list_deliveries(view.id)
    matching_roles: Iterator[DeliveryRole] = (
        role
        for role, target in deliveries.items()
        if pressed_message is not None and target.message == str(pressed_message.id)
    )
    pressed_role: DeliveryRole | None = next(matching_roles, None)
    if pressed_role is None and pressed_message is not None and pressed_message.flags.ephemeral:
        card = _review_card(view)
        await interaction.edit_original_response(content=card.content, view=client.build_view(card))
    else:
        card, picture = await pictures.render_final(client.services.gallery, view, interaction.filesize_limit)
        card = card if pressed_role is None else _card_for_role(pressed_role, card, view, deliveries)
        await interaction.edit_original_response(
            content=card.content,
            attachments=_attachments(card, picture),
            view=client.build_view(card),
            allowed_mentions=NO_MENTIONS,
        )
    for role, target in deliveries.items():
        if role != pressed_role and _has_final_card(role, target, view, deliveries):
            await _edit_message(client, role, target, view, deliveries)


def _has_final_card(
    role: DeliveryRole, target: Delivery, view: JobView, deliveries: dict[DeliveryRole, Delivery]
) -> bool:
    """Return whether a destination has a finished card to edit. If there is a notice, the response has no card."""
    if (
        target.destination.kind != "discord"
        or not target.message
        or target.delivered_at is None
        or not target.destination.address.get("channel")
    ):
        return False
    return role != "answer" or not (view.is_private or "notice" in deliveries)


async def _edit_message(
    client: DarkroomClient,
    role: DeliveryRole,
    target: Delivery,
    view: JobView,
    deliveries: dict[DeliveryRole, Delivery],
) -> None:
    card, picture = await pictures.render_final(client.services.gallery, view, UPLOAD_LIMIT)
    card = _card_for_role(role, card, view, deliveries)
    message = client.get_partial_messageable(int(target.destination.address["channel"])).get_partial_message(
        int(target.message)
    )
    try:
        await message.edit(
            content=card.content,
            attachments=_attachments(card, picture),
            view=client.build_view(card),
            allowed_mentions=NO_MENTIONS,
        )
    except discord.HTTPException as error:
        log.warning("job %s: its %s was not renewed: %s", view.id, role, error)


def _card_for_role(role: DeliveryRole, card: Card, view: JobView, deliveries: dict[DeliveryRole, Delivery]) -> Card:
    user_id = view.member_id.removeprefix("discord:")
    if role == "notice" and user_id.isdecimal():
        return job_cards.render_notice(card, user_id)
    return job_cards.render_direct(card, deliveries["answer"].reason) if role == "direct" else card


def _review_card(view: JobView, missing_note: str = "") -> Card:
    """Return what a moderator reads above the held pictures."""
    texts = [_render_title(view), *(f"🔒 {line}" for line in hold_reasons(view)), f"Only you see this.{missing_note}"]
    return Card("\n".join(texts), button_layout.build_review_rows(view))


def _list_card(views: Sequence[JobView]) -> Card:
    """Return as many jobs as fit into a message, each with its button."""
    texts = list[str]()
    buttons = list[Button]()
    for number, view in enumerate(views, 1):
        texts.append(f"`{number}.` {_render_title(view)} · {len(held_images(view))} held")
        buttons.append(Button("look", view.id, f"Look at {number}"))
        if len("\n".join(texts)) > MAX_CONTENT:
            return Card("\n".join(texts[:-1]), _to_rows(buttons[:-1]))
    return Card("\n".join(texts) or NOTHING_HELD, _to_rows(buttons))


def _to_rows(buttons: Sequence[Button]) -> tuple[tuple[Button, ...], ...]:
    return tuple(tuple(buttons[start : start + MAX_ROW_BUTTONS]) for start in range(0, len(buttons), MAX_ROW_BUTTONS))


def _render_title(view: JobView) -> str:
    private_note = " · private" if view.is_private else ""
    return f"**{escape_discord(view.prompt or NO_PROMPT, 200)}** · {escape_discord(view.member_name, 64)}{private_note}"


def _attachments(card: Card, picture: PictureFile | None) -> list[discord.File]:
    if picture is None:
        return discord.utils.MISSING
    return [to_discord_file(card, picture)]


def _spoiler_file(index: int, content: bytes, limit: int) -> discord.File | None:
    result = grid.shrink_to_fit(content, limit)
    if result is None:
        return None
    payload, file_format = result
    return discord.File(io.BytesIO(payload), f"held-{index + 1}.{pictures.EXTENSIONS[file_format]}", spoiler=True)
