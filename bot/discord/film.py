"""`/film`: animates how a job's pictures came out of noise, or how one dissolves into it, within the upload limit."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

import discord
from discord import app_commands
from discord.app_commands import Choice, Range, locale_str

from bot.discord.cards.job_cards import MAX_ALT, NO_PROMPT
from bot.discord.declarations import declare
from bot.discord.job_choice import recent_jobs_autocomplete
from bot.discord.responses import (
    NO_MENTIONS,
    check_can_attach,
    destination_of,
    member_of,
    reply_on_error,
    require_permission,
)
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord, shorten
from bot.jobs.word_filter import WordFilter
from bot.pictures.animation import check_film_format, parse_film_format
from bot.pictures.gallery import NO_FILM
from bot.services.moderation.visibility import can_publish
from engine.contract import MAX_COUNT

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView
    from bot.pictures.animation import FilmFormat

FilmType = Literal["developing", "dissolving", "both", "walk"]
FORMATS = [Choice(name=name, value=name.lower()) for name in ("WebP", "AVIF", "GIF", "MP4")]
FILM_TYPES = [
    Choice(name=locale_str(name), value=film_type)
    for name, film_type in (
        ("developing: out of the noise", "developing"),
        ("dissolving: into the noise", "dissolving"),
        ("there and back", "both"),
        ("interpolation: from prompt to prompt", "walk"),
    )
]
CAPTIONS: Mapping[FilmType, tuple[str, str]] = MappingProxyType(
    {
        "developing": ("🎞️", "From noise to picture:"),
        "dissolving": ("🌫️", "From picture to noise:"),
        "both": ("🌫️", "From picture to noise and back:"),
        "walk": ("🚶", "Interpolation:"),
    }
)
UPLOAD_MARGIN = 64 * 1024  # bytes of the size limit, for the rest of the request
RULES_TIMEOUT = 1.5  # seconds to read the rules: Discord waits three for a first response


@dataclass(frozen=True)
class FilmRequest:
    """A requested film: direction, file format, and the picture's index if the film shows one picture."""

    film_type: FilmType = "developing"
    file_format: FilmFormat = "webp"
    index: int = 0


@app_commands.command(
    description="Show how a picture came out of the noise, as an animation",
    extras=declare("film", help="a film of its steps"),
)
@app_commands.describe(
    job="Choose one; a link to its message, its id or its seed works too",
    format="The file format",
    kind="What the film shows",
    picture="Which of its pictures, for a film of one picture",
)
@app_commands.choices(format=FORMATS, kind=FILM_TYPES)
async def film(
    interaction: Interaction,
    job: Range[str, 1, 300],
    format: str = "webp",
    kind: str = "developing",
    picture: Range[int, 1, MAX_COUNT] = 1,
) -> None:
    async with reply_on_error(interaction):
        view = await interaction.client.services.history.find_job(job, member_of(interaction))
        await require_permission(interaction, "film", view)
        film_type: FilmType = next((candidate for candidate in get_args(FilmType) if candidate == kind), "developing")
        await send_film(interaction, view, FilmRequest(film_type, parse_film_format(format), picture - 1))


def _has_film(view: JobView) -> bool:
    return view.state == "finished" and bool(view.ladder_images) and view.deleted_at is None


film.autocomplete("job")(recent_jobs_autocomplete(_has_film))


async def _is_public(interaction: Interaction, view: JobView) -> bool:
    """Return whether everybody here may see the film; False if the rules do not load in time."""
    member = member_of(interaction)
    services = interaction.client.services
    try:
        async with asyncio.timeout(RULES_TIMEOUT):
            rules = await services.rule_admin.effective_rules(member)
            return await can_publish(view, member, rules, services.get(WordFilter))
    except TimeoutError:
        return False


async def send_film(interaction: Interaction, view: JobView, request: FilmRequest = FilmRequest()) -> None:
    """Send the film as the response to a command or a press, ephemeral where the rules do not allow it in public.

    Raises `UserError`.
    """
    check_can_attach(interaction)
    check_film_format(request.file_format)
    if not _can_make_film(view, request):
        raise UserError(NO_FILM, 404)
    is_ephemeral = not await _is_public(interaction, view)
    await interaction.response.defer(ephemeral=is_ephemeral, thinking=True)  # it may take more than three seconds
    payload = await _render_film(interaction, view, request)
    emoji, caption = CAPTIONS[request.film_type]
    file = discord.File(
        io.BytesIO(payload),
        f"darkroom-{view.id}-film.{request.file_format}",
        description=shorten(f"{caption} {view.prompt}", MAX_ALT),
    )
    message = await interaction.edit_original_response(
        content=f"{emoji} **{escape_discord(view.prompt or NO_PROMPT, 900)}** · {escape_discord(view.member_name, 64)}",
        attachments=[file],
        allowed_mentions=NO_MENTIONS,
    )
    if not is_ephemeral:
        destination = destination_of(interaction, time.time())
        destination.address["message"] = str(message.id)
        if not await interaction.client.services.deliveries.add_film(
            view.id, destination
        ):  # deleted while the film was made
            await interaction.delete_original_response()


def _can_make_film(view: JobView, request: FilmRequest) -> bool:
    """Return whether the job has what the film needs: dissolving and interpolation need only its pictures."""
    if request.film_type in ("dissolving", "walk"):
        return view.state == "finished" and view.deleted_at is None and bool(view.pictures)
    return _has_film(view)


async def _render_film(interaction: Interaction, view: JobView, request: FilmRequest) -> bytes:
    gallery = interaction.client.services.gallery
    limit = interaction.filesize_limit - UPLOAD_MARGIN
    async with gallery.wait_turn(member_of(interaction).id):
        if request.film_type == "dissolving":
            return await gallery.render_dissolve(view.id, request.index, request.file_format, limit)
        if request.film_type == "both":
            return await gallery.render_dissolve_and_back(view.id, request.index, request.file_format, limit)
        if request.film_type == "walk":
            return await gallery.render_interpolation_film(view.id, limit, request.file_format)
        return await gallery.render_film(view.id, limit, request.file_format)
