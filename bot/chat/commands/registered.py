"""All commands in one tuple: it is registered, counted and translated."""

from __future__ import annotations

from typing import Any, cast

import discord
from discord import app_commands, ui

from bot.chat.commands.belongings import ForgetButton, forget_me, my_data
from bot.chat.commands.blend import blend
from bot.chat.commands.describe import ImagineButton, describe
from bot.chat.commands.help import show_help
from bot.chat.commands.imagine import imagine
from bot.chat.commands.languages import CommandTranslator
from bot.chat.commands.menus import report_message, reproduce_message, show_job_details, use_as_prompt
from bot.chat.commands.mine import JobSelect, PageButton, mine
from bot.chat.commands.mix import mix
from bot.chat.commands.overview import show_info
from bot.chat.commands.own import prefer
from bot.chat.commands.queue import cancel, queue
from bot.chat.commands.reproduce import reproduce
from bot.chat.commands.shortcuts import fast, public, relax, stealth, turbo
from bot.chat.commands.shorten import ShortenButton, shorten
from bot.chat.commands.tree import DarkroomCommandTree
from bot.chat.commands.walk import walk
from bot.chat.film import film
from bot.chat.presses.buttons import JobButton
from bot.chat.presses.more import PictureMenu
from bot.chat.presses.rung import KeyframeMenu
from bot.chat.settings import COMMANDS as SETTINGS

COMMANDS: tuple[app_commands.Command[Any, ..., Any] | app_commands.ContextMenu | app_commands.Group, ...] = (
    imagine,
    blend,
    mix,
    walk,
    shorten,
    describe,
    queue,
    cancel,
    mine,
    show_info,
    prefer,
    fast,
    relax,
    turbo,
    stealth,
    public,
    reproduce,
    film,
    my_data,
    forget_me,
    show_help,
    reproduce_message,
    use_as_prompt,
    show_job_details,
    report_message,
    *SETTINGS,
)
# buttons and menus that outlive a restart
DYNAMIC_ITEMS: tuple[type[ui.DynamicItem[Any]], ...] = (
    JobButton,
    PictureMenu,
    KeyframeMenu,
    ShortenButton,
    ImagineButton,
    PageButton,
    JobSelect,
    ForgetButton,
)


async def build_payload() -> list[dict[str, Any]]:
    """Return the payload that Discord gets; needs no connection."""
    tree = DarkroomCommandTree(cast(Any, discord.Client(intents=discord.Intents(guilds=True))))
    await tree.set_translator(CommandTranslator())
    for command in COMMANDS:
        tree.add_command(command)
    return await tree.build_payload()
