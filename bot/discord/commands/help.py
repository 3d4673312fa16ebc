"""`/help`: what this bot does, on one phone screen, with a clickable mention of every command.

With many commands their list comes in a second message, since one of Discord's holds 2000 characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from discord import app_commands

from bot.discord.cards.job_cards import MAX_CONTENT
from bot.discord.declarations import declare, list_help
from bot.discord.responses import NO_MENTIONS, member_of, send_ephemeral

if TYPE_CHECKING:
    from bot.discord.client import Interaction

HELP_TEXT = """**Darkroom** turns prompts into pictures while you watch.
{imagine} with a prompt makes four pictures. With an image, or a link before it, it starts from that.
-# Flags: `--ar 3:2` `--steps 40` `--seed 7` `--no fog` `--count 1` `--fast` `--turbo` `--relax` `--guidance 5` \
`--model …` `--sampler euler`
-# Also `--lora name:0.8`, `--control canny`, `(word:1.2)`
-# `red apple:: blue::-0.5` weights parts, `{red, green} apple` makes both.

**Under a picture**
**U** upscales one, **V** varies it, 🔄 takes another seed, ✏️ another prompt, 🎞️ shows the film.
*More…* zooms, pans, edits a part, branches off. *Walk* goes from picture to picture. *Finish it* ends a draft.
❤️ makes it a favourite, 🚩 reports, 🗑️ deletes it for good.
While it develops, *Keep…* lets images go and *Say more…* changes it.
-# React with ✉️ to get it by message, with ❌ to cancel or delete yours.

-# A message's *Apps* menu reproduces its picture or uses its prompt."""
COMMANDS_TEXT = """**Yours**
{commands}"""
STAFF_LINE = "-# {settings show} · limits, refused words and reports of this server"
_COMMAND_NAME = re.compile(r"\{([a-z-]+(?: [a-z-]+)?)\}")


@app_commands.command(name="help", description="What this bot does, and how to ask for it", extras=declare("help"))
async def show_help(interaction: Interaction) -> None:
    member = member_of(interaction)
    is_staff = interaction.guild_id is not None and (member.is_moderator or member.is_admin or member.is_owner)
    first_text, *other_texts = render_help(interaction.client.mention_command, is_staff=is_staff)
    await send_ephemeral(interaction, first_text)
    for text in other_texts:
        await interaction.followup.send(text, ephemeral=True, allowed_mentions=NO_MENTIONS)


def render_help(mention: Callable[[str], str], *, is_staff: bool) -> list[str]:
    """Return one text or two; `is_staff`: for those who may see this server's settings."""
    lines = "\n".join(f"{{{name}}} · {words}" for name, words in list_help().items())
    commands_text = COMMANDS_TEXT.replace("{commands}", lines) + (f"\n{STAFF_LINE}" if is_staff else "")
    texts = [_COMMAND_NAME.sub(lambda match: mention(match[1]), text) for text in (HELP_TEXT, commands_text)]
    whole_text = "\n\n".join(texts)
    return [whole_text] if len(whole_text) <= MAX_CONTENT else texts
