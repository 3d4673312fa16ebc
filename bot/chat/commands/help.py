"""`/help`: what this bot does, on one screen of a telephone, with every command to be tapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import discord
from discord import app_commands

from bot.chat.answer import member_of, say

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

WHAT = """**Darkroom** turns words into pictures while you watch.
{imagine} with a few words: four pictures develop here. With an image, or a link before the words, it begins with that.
-# Flags: `--ar 3:2` `--steps 40` `--seed 7` `--no fog` `--count 1` `--fast` `--relax` `--guidance 5` `--model …` \
`--sampler euler`
-# Also `--interval 0.2-0.8`, `--lora name:0.8`, `(word:1.2)`
-# `red apple:: blue::-0.5` weighs parts, `{{red, green}} apple` makes each of them.

**Under a picture**
**U** enlarges one, **V** varies it, 🔄 rolls again, ✏️ takes other words, 🎞️ shows how it came.
*More…* zooms out, pans, edits a part, branches off midway. *Walk* is a film from picture to picture.
❤️ makes it a favourite, 🚩 reports it to the moderators, 🗑️ deletes it for good.
-# React with ✉️ to get it as a direct message, with ❌ to cancel or delete what is yours.

**Yours**
{mine} · your pictures
{queue} · who is before you, and why
{cancel} · take a job back
{info} · what you may spend, and what is left
{prefer show} · pings, privacy, speed, flags of your own; short: `/fast` `/relax` `/stealth` `/public`
{reproduce} · the same picture once more
{film} · how it came out of the noise
{blend} · two to five pictures in one
{mix} · two prompts in one
{walk} · from one prompt to another, with a film
{shorten} · which words carry a prompt
{describe} · words that fit a picture
{my-data} · a copy of what is kept of you
{forget-me} · everything of yours is removed

-# A message's own menu (right click, or hold it, then *Apps*) reproduces its picture or uses its words."""
ADMIN = "-# {settings show} · limits, words and reports of this server"
NAMES = (
    "imagine", "blend", "mix", "walk", "shorten", "describe", "mine", "queue", "cancel", "info", "prefer show",
    "reproduce", "film", "my-data", "forget-me",
)  # fmt: skip


@app_commands.command(name="help", description="What this bot does, and how to ask for it")
async def show_help(interaction: discord.Interaction[DarkroomClient]) -> None:
    member = member_of(interaction)
    staff = interaction.guild_id is not None and (member.moderator or member.admin or member.owner)
    await say(interaction, told(interaction.client.tree.mention, staff=staff))


def told(mention: Callable[[str], str], *, staff: bool) -> str:
    """The text; `staff`: for those who may look at this server's settings."""
    text = WHAT.format(**{name: mention(name) for name in NAMES})
    return f"{text}\n{ADMIN.format(**{'settings show': mention('settings show')})}" if staff else text
