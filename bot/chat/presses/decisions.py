"""Moderators' decisions about held pictures: look at them in private, show them to all, keep them hidden.

The permission was checked before. Knows the desk and the messages that show a job; knows nothing of how a picture is
checked.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import discord

from bot.chat import delivery, notices, rows
from bot.chat.answer import member_of, refuse
from bot.chat.attached import attached
from bot.chat.called import WORDLESS
from bot.chat.delivery import UPLOAD, Picture
from bot.chat.presenter import CONTENT, Card, refusal
from bot.chat.presses.removal import films_away
from bot.chat.quiet import QUIET
from bot.chat.rows import ROW, Button
from bot.images import grid
from bot.images.held import held, lines
from bot.refused import Refused
from bot.sentences import quoted
from bot.views import Place

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import Delivery, Role, View

    Interaction = discord.Interaction[DarkroomClient]

log = logging.getLogger(__name__)

MOST = 20  # jobs of a list: each has a button, and a message has at most 25
NONE_WAITS = "No picture waits for a moderator here."
LATE = "Your decision is saved, but this message could not be updated."


async def list_waiting(interaction: Interaction) -> None:
    """List the jobs with held pictures, each with a button to look; also private ones, whose cards no moderator has."""
    try:
        views = await interaction.client.desk.review.waiting(member_of(interaction), MOST)
    except Refused as refused:
        await refuse(interaction, refused.sentence)
        return
    card = _listed(views)
    controls = interaction.client.controls(card) or discord.utils.MISSING
    await interaction.response.send_message(card.content, view=controls, ephemeral=True, allowed_mentions=QUIET)


async def look(interaction: Interaction, view: View) -> None:
    """Show the held pictures as spoilers to the presser only, with buttons to decide."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    try:
        pictures = await interaction.client.desk.review.look(view.id, member_of(interaction))
    except Refused as refused:
        await interaction.edit_original_response(content=refusal(refused.sentence), allowed_mentions=QUIET)
        return
    limit = interaction.filesize_limit // len(pictures)
    files = [await asyncio.to_thread(_covered, index, content, limit) for index, content in pictures]
    missing = "" if all(files) else " What is missing here is larger than this server takes."
    card = _alone(view, missing)
    await interaction.edit_original_response(
        content=card.content, attachments=[file for file in files if file], view=interaction.client.controls(card)
    )


async def decide(interaction: Interaction, button: Button) -> None:
    """Show a picture or keep it hidden, and update every message that shows the job."""
    client, show = interaction.client, button.press == "approve"
    try:
        view = await client.desk.review.decide(button.job, button.index or 0, member_of(interaction), show=show)
    except Refused as refused:
        await refuse(interaction, refused.sentence)
        return
    await interaction.response.defer()
    try:
        if not show:  # a film may have been made while the picture was shown
            await films_away(client, view.id, await client.desk.deliveries.films(view.id))
        await _renew(interaction, view)
        if show and view.private:
            await _send_to_author(client, view)
    except Exception:  # the decision stands; the apology must not replace the message
        log.exception("job %s: its message was not renewed", button.job)
        await interaction.followup.send(LATE, ephemeral=True)


async def _send_to_author(client: DarkroomClient, view: View) -> None:
    """Add a direct message, which the courier sends within a minute: a private response cannot be edited any more."""
    user = view.member_id.removeprefix("discord:")
    if user.isdecimal():
        await client.desk.deliveries.add(view.id, "direct", Place("discord", {"user": user}))


async def _renew(interaction: Interaction, view: View) -> None:
    client, here = interaction.client, interaction.message
    shown = await client.desk.deliveries.of(view.id)
    mine: Iterator[Role] = (role for role, one in shown.items() if here is not None and one.message == str(here.id))
    pressed: Role | None = next(mine, None)
    if pressed is None and here is not None and here.flags.ephemeral:
        card = _alone(view)
        await interaction.edit_original_response(content=card.content, view=client.controls(card))
    else:
        card, picture = await delivery.ending(client.studio, view, interaction.filesize_limit)
        card = card if pressed is None else _as(pressed, card, view, shown)
        await interaction.edit_original_response(
            content=card.content, attachments=_files(card, picture), view=client.controls(card), allowed_mentions=QUIET
        )
    for role, one in shown.items():
        if role != pressed and _is_card(role, one, view, shown):
            await _edit(client, role, one, view, shown)


def _is_card(role: Role, one: Delivery, view: View, shown: dict[Role, Delivery]) -> bool:
    """Return whether a destination has a finished card to edit; if there is a notice, the response has none."""
    if one.place.kind != "discord" or not one.message or one.delivered is None or not one.place.where.get("channel"):
        return False
    return role != "answer" or not (view.private or "notice" in shown)


async def _edit(client: DarkroomClient, role: Role, one: Delivery, view: View, shown: dict[Role, Delivery]) -> None:
    card, picture = await delivery.ending(client.studio, view, UPLOAD)
    card = _as(role, card, view, shown)
    message = client.get_partial_messageable(int(one.place.where["channel"])).get_partial_message(int(one.message))
    try:
        await message.edit(
            content=card.content, attachments=_files(card, picture), view=client.controls(card), allowed_mentions=QUIET
        )
    except discord.HTTPException as error:
        log.warning("job %s: its %s was not renewed: %s", view.id, role, error)


def _as(role: Role, card: Card, view: View, shown: dict[Role, Delivery]) -> Card:
    user = view.member_id.removeprefix("discord:")
    if role == "notice" and user.isdecimal():
        return notices.notice(card, user)
    return notices.elsewhere(card, shown["answer"].reason) if role == "direct" else card


def _alone(view: View, missing: str = "") -> Card:
    """Return what a moderator reads above the held pictures."""
    said = [_named(view), *(f"🔒 {line}" for line in lines(view)), f"Only you see this.{missing}"]
    return Card("\n".join(said), rows.deciding(view))


def _listed(views: Sequence[View]) -> Card:
    """Return as many jobs as fit into a message, each with its button."""
    said, buttons = [], []
    for number, view in enumerate(views, 1):
        said.append(f"`{number}.` {_named(view)} · {len(held(view))} held")
        buttons.append(Button("look", view.id, f"Look at {number}"))
        if len("\n".join(said)) > CONTENT:
            return Card("\n".join(said[:-1]), _laid(buttons[:-1]))
    return Card("\n".join(said) or NONE_WAITS, _laid(buttons))


def _laid(buttons: Sequence[Button]) -> tuple[tuple[Button, ...], ...]:
    return tuple(tuple(buttons[at : at + ROW]) for at in range(0, len(buttons), ROW))


def _named(view: View) -> str:
    private = " · private" if view.private else ""
    return f"**{quoted(view.prompt or WORDLESS, 200)}** · {quoted(view.member_name, 64)}{private}"


def _files(card: Card, picture: Picture | None) -> list[discord.File]:
    if picture is None:
        return discord.utils.MISSING
    return [attached(card, picture)]


def _covered(index: int, content: bytes, limit: int) -> discord.File | None:
    fitting = grid.under(content, limit)
    if fitting is None:
        return None
    payload, form = fitting
    return discord.File(io.BytesIO(payload), f"held-{index + 1}.{delivery.ENDING[form]}", spoiler=True)
