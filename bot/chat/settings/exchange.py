"""Export and import of a server's rules as a file. An import shows its changes and asks; it is all or nothing.

The question's message carries the file, so it can be confirmed after a restart.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import discord
from discord import ui

from bot.chat.settings import cards, looking, ours, parts, wording
from bot.chat.settings.asked import Shown, respond
from bot.chat.settings.changing import own
from bot.refused import Refused
from bot.rules import planning, sheet
from bot.sentences import shortened

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.chat.settings.presses import Press
    from bot.rules.rule import Key, Value
    from bot.views import Member

NAME = "darkroom-settings.yaml"
ENDINGS = (".yaml", ".yml", ".txt")
ROOM = 1900  # characters of the lines, of the 2000 that a message has
GONE = "The file of this import cannot be read any more. Send it again with /settings import."


async def export(interaction: Interaction, press: Press | None = None) -> None:
    """Send the rules as YAML, to keep, to edit, or to import into another server."""

    async def work(member: Member) -> Shown:
        text = await looking.administration(interaction).export(member.guild)
        said = "The rules of this server. Edit the file and send it back with `/settings import`."
        return Shown(content=said, files=(_file(text),), fresh=True)

    await respond(interaction, "settings", work)


async def bring(interaction: Interaction, attachment: discord.Attachment) -> None:
    """Show what a file would change, and ask."""

    async def work(member: Member) -> Shown:
        text = await read(attachment)
        values = await _values(interaction, member, text)
        steps = planning.brought(await own(interaction, member), values)
        lines = wording.fitting([f"**This changes {len(steps)} rules:**", *wording.steps(steps)], ROOM)
        view = ui.View(timeout=None)
        view.add_item(parts.button("Import", "bring", style=discord.ButtonStyle.primary))
        view.add_item(parts.button("Cancel", "leave"))
        return Shown(content="\n".join(lines), view=view, files=(_file(text),))

    await respond(interaction, "set", work)


async def brought(interaction: Interaction, press: Press) -> None:
    """Import after the confirmation: the file is read again, from the question's message."""

    async def work(member: Member) -> Shown:
        attached = interaction.message.attachments if interaction.message else []
        if not attached:
            raise Refused(GONE, 404)
        text = await read(attached[0])
        await _values(interaction, member, text)
        change = await looking.administration(interaction).bring(member, text)
        notice = cards.notice(wording.changed(change), change.number)
        shown = await looking.overview(interaction, member, notice)
        return Shown(view=shown.view, fresh=True)

    await respond(interaction, "set", work)


async def _values(interaction: Interaction, member: Member, text: str) -> dict[Key, Value]:
    """Return the rules in a file. Raises `Refused` for a channel of another server."""
    values = await asyncio.to_thread(sheet.bring, text, member.guild)
    ours.check_reports(interaction, (value for (_, _, name), value in values.items() if name == ours.REPORTS))
    return values


async def left(interaction: Interaction, press: Press) -> None:
    """Cancel: the question goes, with its file."""

    async def work(member: Member) -> Shown:
        return Shown(content="Nothing was changed.")

    await respond(interaction, "set", work)


async def read(attachment: discord.Attachment) -> str:
    """Return the text of a file. Raises `Refused`, before the download if it is too large or no text."""
    if attachment.size > sheet.BYTES:
        raise Refused(
            f"That file is too large: {attachment.size // 1024} KiB of at most {sheet.BYTES // 1024} KiB.", 413
        )
    kind = (attachment.content_type or "").partition(";")[0].strip().casefold()
    if not attachment.filename.casefold().endswith(ENDINGS) or not _textual(kind):
        name = shortened(attachment.filename, 60)
        raise Refused(f"“{name}” is no YAML file: the file that /settings export gives ends in .yaml.")
    try:
        payload = await attachment.read()
    except discord.HTTPException:
        raise Refused(GONE, 404) from None
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        raise Refused(f"Line {line} of the file is not UTF-8 text. Save it as UTF-8 and send it again.") from None


def _textual(kind: str) -> bool:
    """Return whether the content type may be text: Discord guesses it from the name, and may give none."""
    return not kind or kind.startswith("text/") or kind.endswith(("yaml", "octet-stream"))


def _file(text: str) -> discord.File:
    return discord.File(io.BytesIO(text.encode()), filename=NAME)
