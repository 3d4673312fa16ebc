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

from bot.chat.answer import member_of, place_of
from bot.chat.called import WORDLESS
from bot.chat.channel import check_channel
from bot.chat.permitted import permit, refusing
from bot.chat.presenter import ALT
from bot.chat.quiet import QUIET
from bot.chat.which import recent_jobs
from bot.desk.publishing import publishable
from bot.images.film_formats import check_kind, kind_of
from bot.images.gallery import NO_FILM
from bot.refused import Refused
from bot.sentences import quoted, shortened
from engine.job import MAX_COUNT

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.images.film_formats import Kind
    from bot.views import View

Way = Literal["developing", "dissolving", "both", "walk"]
FORMATS = [Choice(name=name, value=name.lower()) for name in ("WebP", "AVIF", "GIF", "MP4")]
WAYS = [
    Choice(name=locale_str(name), value=way)
    for name, way in (
        ("developing: out of the noise", "developing"), ("dissolving: into the noise", "dissolving"),
        ("there and back", "both"), ("interpolation: from prompt to prompt", "walk"),
    )
]  # fmt: skip
SAID: Mapping[Way, tuple[str, str]] = MappingProxyType(
    {
        "developing": ("🎞️", "From noise to picture:"), "dissolving": ("🌫️", "From picture to noise:"),
        "both": ("🌫️", "From picture to noise and back:"), "walk": ("🚶", "Interpolation:"),
    }
)  # fmt: skip
MARGIN = 64 * 1024  # bytes of the size limit, for the rest of the request
GLANCE = 1.5  # seconds to read the rules: Discord waits three for a first response


@dataclass(frozen=True)
class Film:
    """A requested film: direction, file format, and the picture's index if the film shows one picture."""

    way: Way = "developing"
    kind: Kind = "webp"
    index: int = 0


@app_commands.command(description="Show how a picture came out of the noise, as an animation")
@app_commands.describe(
    job="Choose one; a link to its message, its id or its seed works too",
    format="The file format",
    kind="What the film shows",
    picture="Which of its pictures, for a film of one picture",
)
@app_commands.choices(format=FORMATS, kind=WAYS)
async def film(
    interaction: discord.Interaction[DarkroomClient],
    job: Range[str, 1, 300],
    format: str = "webp",
    kind: str = "developing",
    picture: Range[int, 1, MAX_COUNT] = 1,
) -> None:
    async with refusing(interaction):
        view = await interaction.client.desk.shelf.meant(job, member_of(interaction))
        await permit(interaction, "film", view)
        chosen: Way = next((way for way in get_args(Way) if way == kind), "developing")
        await post_film(interaction, view, Film(chosen, kind_of(format), picture - 1))


@film.autocomplete("job")
async def jobs(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[app_commands.Choice[str]]:
    return await recent_jobs(_has_film)(interaction, typed)


def _has_film(view: View) -> bool:
    return view.state == "finished" and bool(view.ladders) and view.deleted is None


async def _for_all(interaction: discord.Interaction[DarkroomClient], view: View) -> bool:
    """Return whether everybody here may see the film; False if the rules do not load in time."""
    member = member_of(interaction)
    try:
        async with asyncio.timeout(GLANCE):
            terms = await interaction.client.desk.administration.terms(member)
            return await publishable(view, member, terms)
    except TimeoutError:
        return False


async def post_film(interaction: discord.Interaction[DarkroomClient], view: View, wanted: Film = Film()) -> None:
    """Send the film as the response to a command or a press, ephemeral where the rules do not allow it in public.

    Raises `Refused`.
    """
    check_channel(interaction)
    check_kind(wanted.kind)
    if not _there(view, wanted):
        raise Refused(NO_FILM, 404)
    alone = not await _for_all(interaction, view)
    await interaction.response.defer(ephemeral=alone, thinking=True)  # it may take more than three seconds
    made = await _made(interaction, view, wanted)
    sign, alt = SAID[wanted.way]
    file = discord.File(
        io.BytesIO(made), f"darkroom-{view.id}-film.{wanted.kind}", description=shortened(f"{alt} {view.prompt}", ALT)
    )
    message = await interaction.edit_original_response(
        content=f"{sign} **{quoted(view.prompt or WORDLESS, 900)}** · {quoted(view.member_name, 64)}",
        attachments=[file],
        allowed_mentions=QUIET,
    )
    if not alone:
        place = place_of(interaction, time.time())
        place.where["message"] = str(message.id)
        if not await interaction.client.desk.deliveries.filmed(view.id, place):  # deleted while the film was made
            await interaction.delete_original_response()


def _there(view: View, wanted: Film) -> bool:
    """Return whether the job has what the film needs: dissolving and interpolation need only its pictures."""
    if wanted.way in ("dissolving", "walk"):
        return view.state == "finished" and view.deleted is None and bool(view.pictures)
    return _has_film(view)


async def _made(interaction: discord.Interaction[DarkroomClient], view: View, wanted: Film) -> bytes:
    studio, limit = interaction.client.studio, interaction.filesize_limit - MARGIN
    if wanted.way == "dissolving":
        return await studio.dissolve(view.id, wanted.index, wanted.kind, limit)
    if wanted.way == "both":
        return await studio.there_and_back(view.id, wanted.index, wanted.kind, limit)
    if wanted.way == "walk":
        return await studio.walk(view.id, limit, wanted.kind)
    return await studio.film(view.id, limit, wanted.kind)
