"""Export and import of a server's rules as a file. An import shows its changes and asks; it is all or nothing.

The question's message carries the file, so it can be confirmed after a restart.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import discord
from discord import ui

from bot.discord.settings import cards, rule_changes, rule_pages, texts, ui_parts
from bot.discord.settings.responses import Reply, respond
from bot.discord.settings.rule_changes import load_own_rules
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.policy.rules import planned_changes

if TYPE_CHECKING:
    from bot.discord.settings.responses import CardPress, Interaction
    from bot.domain.dto import Member
    from bot.policy.rules.rule import RuleKey, RuleValue

FILE_NAME = "darkroom-settings.yaml"
FILE_SUFFIXES = (".yaml", ".yml", ".txt")
MESSAGE_CHARACTERS = 1900  # characters of the lines, out of a message's 2000
FILE_UNREADABLE = "The file of this import cannot be read any more. Send it again with /settings import."


async def export_rules(interaction: Interaction, press: CardPress | None = None) -> None:
    """Send the rules as YAML, to keep, to edit, or to import into another server."""

    async def build_reply(member: Member) -> Reply:
        text = await rule_pages.get_administration(interaction).export_yaml(member.guild)
        caption = "The rules of this server. Edit the file and send it back with `/settings import`."
        return Reply(content=caption, files=(_yaml_file(text),), as_new_message=True)

    await respond(interaction, "settings", build_reply)


async def offer_import(interaction: Interaction, attachment: discord.Attachment) -> None:
    """Show what a file would change, and ask."""

    async def build_reply(member: Member) -> Reply:
        text = await read_attachment(attachment)
        values = await _parse_rules(interaction, member, text)
        steps = planned_changes.plan_import(await load_own_rules(interaction, member), values)
        lines = texts.fit_lines(
            [f"**This changes {len(steps)} rules:**", *texts.format_steps(steps)], MESSAGE_CHARACTERS
        )
        view = ui.View(timeout=None)
        view.add_item(ui_parts.make_button("Import", "bring", style=discord.ButtonStyle.primary))
        view.add_item(ui_parts.make_button("Cancel", "leave"))
        return Reply(content="\n".join(lines), view=view, files=(_yaml_file(text),))

    await respond(interaction, "set", build_reply)


async def confirm_import(interaction: Interaction, press: CardPress) -> None:
    """Import after the confirmation: the file is read again, from the question's message."""

    async def build_reply(member: Member) -> Reply:
        attachments = interaction.message.attachments if interaction.message else []
        if not attachments:
            raise UserError(FILE_UNREADABLE, 404)
        text = await read_attachment(attachments[0])
        await _parse_rules(interaction, member, text)
        change = await rule_pages.get_administration(interaction).import_yaml(member, text)
        notice = cards.build_notice(texts.describe_change(change), change.number)
        overview = await rule_pages.build_overview(interaction, member, notice)
        return Reply(view=overview.view, as_new_message=True)

    await respond(interaction, "set", build_reply)


async def _parse_rules(interaction: Interaction, member: Member, text: str) -> dict[RuleKey, RuleValue]:
    """Return the rules in a file. Raises `UserError` for a channel of another server."""
    values = await asyncio.to_thread(planned_changes.load_rules, text, member.guild)
    rule_changes.check_report_channels(
        interaction, (value for (_, _, name), value in values.items() if name == rule_changes.REPORTS)
    )
    return values


async def cancel_import(interaction: Interaction, press: CardPress) -> None:
    """Cancel: the question goes, with its file."""

    async def build_reply(member: Member) -> Reply:
        return Reply(content="Nothing was changed.")

    await respond(interaction, "set", build_reply)


async def read_attachment(attachment: discord.Attachment) -> str:
    """Return the text of a file. Raises `UserError`; before the download, if the file is too large or not text."""
    if attachment.size > planned_changes.MAX_BYTES:
        raise UserError(
            f"That file is too large: {attachment.size // 1024} KiB "
            f"of at most {planned_changes.MAX_BYTES // 1024} KiB.",
            413,
        )
    content_type = (attachment.content_type or "").partition(";")[0].strip().casefold()
    if not attachment.filename.casefold().endswith(FILE_SUFFIXES) or not _is_text_type(content_type):
        name = shorten(attachment.filename, 60)
        raise UserError(f"“{name}” is no YAML file: the file that /settings export gives ends in .yaml.")
    try:
        payload = await attachment.read()
    except discord.HTTPException:
        raise UserError(FILE_UNREADABLE, 404) from None
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        raise UserError(f"Line {line} of the file is not UTF-8 text. Save it as UTF-8 and send it again.") from None


def _is_text_type(content_type: str) -> bool:
    """Return whether the content type may be text: Discord guesses it from the name, and may leave it out."""
    return not content_type or content_type.startswith("text/") or content_type.endswith(("yaml", "octet-stream"))


def _yaml_file(text: str) -> discord.File:
    return discord.File(io.BytesIO(text.encode()), filename=FILE_NAME)
