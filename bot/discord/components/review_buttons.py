"""What moderators see and decide: held pictures in private, show them to all or keep them hidden; reports of members.

The caller has checked the permission. Knows the services and the messages that show a job; knows nothing of how a
picture is checked.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import discord

from bot.discord.cards import button_layout, job_cards, pictures
from bot.discord.cards.button_layout import Button
from bot.discord.cards.job_cards import MAX_CONTENT, NO_PROMPT, Card, message_link, render_refusal
from bot.discord.cards.pictures import UPLOAD_LIMIT, to_discord_file
from bot.discord.components.deletion import delete_films
from bot.discord.components.forms import FormSubmission, create_form, form_id, open_form, text_field
from bot.discord.responses import NO_MENTIONS, member_of, send_ephemeral, send_refusal
from bot.domain.dto import Destination
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.pictures import grid
from bot.pictures.moderation_status import held_images, hold_reasons
from bot.services.moderation.moderation import MAX_REASON
from bot.services.moderation.picture_review import PictureReview

if TYPE_CHECKING:
    from discord import ui

    from bot.discord.client import DarkroomClient, Interaction
    from bot.domain.dto import Delivery, DeliveryRole, JobView
    from bot.services.front_end_actions import Report

    Deliveries = Mapping[DeliveryRole, Delivery]

log = logging.getLogger(__name__)

MAX_LISTED = 20  # jobs of a list: each has a button, and a message has at most 25
NOTHING_HELD = "No picture waits for a moderator here."
UPDATE_FAILED = "Your decision is saved, but this message could not be updated."


async def list_held_jobs(interaction: Interaction) -> None:
    """List the jobs with held pictures, each with a button to look; private ones too, whose cards they never see."""
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


async def decide_picture(interaction: Interaction, button: Button, _view: object) -> None:
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
    """Edit the pressed message and every other one that shows the job."""
    client = interaction.client
    pressed = interaction.message
    deliveries = await client.services.deliveries.list_deliveries(view.id)
    roles: Iterator[DeliveryRole] = iter(deliveries)
    pressed_id = None if pressed is None else str(pressed.id)
    pressed_role: DeliveryRole | None = next((role for role in roles if deliveries[role].message == pressed_id), None)
    if pressed_role is None and pressed is not None and pressed.flags.ephemeral:
        card = _review_card(view)
        await interaction.edit_original_response(content=card.content, view=client.build_view(card))
    else:
        content = await _render_final(client, view, pressed_role, deliveries, interaction.filesize_limit)
        await interaction.edit_original_response(**content, allowed_mentions=NO_MENTIONS)
    for role, target in deliveries.items():
        if role == pressed_role or not _has_final_card(role, target, view, deliveries):
            continue
        channel = client.get_partial_messageable(int(target.destination.address["channel"]))
        content = await _render_final(client, view, role, deliveries, UPLOAD_LIMIT)
        try:
            message = channel.get_partial_message(int(target.message))
            await message.edit(**content, allowed_mentions=NO_MENTIONS)
        except discord.HTTPException as error:
            log.warning("job %s: its %s was not renewed: %s", view.id, role, error)


def _has_final_card(role: DeliveryRole, target: Delivery, view: JobView, deliveries: Deliveries) -> bool:
    """Return whether a destination has a finished card to edit. If there is a notice, the response has no card."""
    is_shown = target.destination.kind == "discord" and target.message and target.delivered_at is not None
    if not is_shown or not target.destination.address.get("channel"):
        return False
    return role != "answer" or not (view.is_private or "notice" in deliveries)


async def _render_final(
    client: DarkroomClient, view: JobView, role: DeliveryRole | None, deliveries: Deliveries, limit: int
) -> dict[str, Any]:
    """Return the finished card of a destination as arguments of an edit."""
    card, picture = await pictures.render_final(client.services.gallery, view, limit)
    user_id = view.member_id.removeprefix("discord:")
    if role == "notice" and user_id.isdecimal():
        card = job_cards.render_notice(card, user_id)
    elif role == "direct":
        card = job_cards.render_direct(card, deliveries["answer"].reason)
    attachments = [to_discord_file(card, picture)] if picture else discord.utils.MISSING
    return {"content": card.content, "attachments": attachments, "view": client.build_view(card)}


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
            return Card("\n".join(texts[:-1]), button_layout.split_rows(buttons[:-1]))
    return Card("\n".join(texts) or NOTHING_HELD, button_layout.split_rows(buttons))


def _render_title(view: JobView) -> str:
    private_note = " · private" if view.is_private else ""
    return f"**{escape_discord(view.prompt or NO_PROMPT, 200)}** · {escape_discord(view.member_name, 64)}{private_note}"


def _spoiler_file(index: int, content: bytes, limit: int) -> discord.File | None:
    result = grid.shrink_to_fit(content, limit)
    if result is None:
        return None
    payload, file_format = result
    return discord.File(io.BytesIO(payload), f"held-{index + 1}.{pictures.EXTENSIONS[file_format]}", spoiler=True)


async def open_report_form(interaction: Interaction, view: JobView) -> None:
    await open_form(interaction, build_report_form(view.id))


def build_report_form(job: str) -> ui.Modal:
    """Return the form with its one question."""
    hint = "The moderators of this server read it"
    field = text_field("reason", "What is wrong with it?", hint, max_length=MAX_REASON)
    return create_form("Report to the moderators", form_id("report", job), field)


async def submit_report(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form."""
    moderation = interaction.client.services.moderation
    reason = submission.fields.get("reason", "")
    await send_ephemeral(interaction, await moderation.report_picture(view.id, member_of(interaction), reason))


async def post_report(client: DarkroomClient, report: Report) -> bool:
    """Post a report in its channel; return False if that is not of the report's server, whatever a rule says.

    Raises `discord.HTTPException` if Discord rejects it.
    """
    channel = _report_channel(client, report)
    if channel is None:
        return False
    deliveries = await client.services.deliveries.list_deliveries(report.job)
    addresses = (entry.destination.address for entry in deliveries.values() if entry.destination.kind == "discord")
    target: Mapping[str, str] = next(addresses, dict[str, str]())
    report_card = render_report(report, message_link(target))
    view = client.build_view(report_card) or discord.utils.MISSING
    await channel.send(report_card.content, view=view, allowed_mentions=NO_MENTIONS)
    return True


def _report_channel(client: DarkroomClient, report: Report) -> discord.abc.Messageable | None:
    guild_id = report.guild.removeprefix("discord:")
    guild = client.get_guild(int(guild_id)) if guild_id.isdecimal() else None
    channel = guild.get_channel_or_thread(int(report.channel)) if guild and report.channel.isdecimal() else None
    return channel if isinstance(channel, discord.abc.Messageable) else None


async def show_reported(interaction: Interaction, view: JobView) -> None:
    """Show the public pictures to the moderator only, as spoilers."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    picture = None
    if view.deleted_at is None and view.state == "finished":
        try:
            picture = await pictures.render_picture(
                interaction.client.services.gallery, view, interaction.filesize_limit
            )
        except UserError as error:
            await interaction.edit_original_response(content=escape_discord(error.sentence))
            return
    if picture is None:
        await interaction.edit_original_response(content="There is nothing to show.")
        return
    file = discord.File(io.BytesIO(picture.payload), picture.name, spoiler=True)
    text = f"**{escape_discord(view.prompt or NO_PROMPT, 900)}** · {escape_discord(view.member_name, 64)}"
    await interaction.edit_original_response(content=text, attachments=[file], allowed_mentions=NO_MENTIONS)


async def dismiss_report(interaction: Interaction, button: Button, _view: object) -> None:
    """Close the report: nothing is wrong, or it is dealt with. The card says who dismissed it."""
    incident = await interaction.client.services.moderation.close_incident(button.index or 0, member_of(interaction))
    assert interaction.message
    text = f"{interaction.message.content}\n-# Dismissed by {escape_discord(interaction.user.display_name, 64)}."
    if incident.closed is not None:
        await interaction.response.edit_message(content=text[:2000], view=None, allowed_mentions=NO_MENTIONS)


def render_report(report: Report, address: str) -> Card:
    """Return a report as moderators see it; `address` is the reported message's, if known."""
    lines = [
        f"🚩 **{escape_discord(report.reporter, 64)}** reported a picture of **{escape_discord(report.author, 64)}**:",
        f"> {escape_discord(report.reason, 900)}",
    ]
    rows = button_layout.build_report_rows(report.job, report.incident)
    return Card("\n".join([*lines, address] if address else lines), rows)
