"""All commands in one tuple: it is registered, counted and translated."""

from __future__ import annotations

from typing import Any, cast

import discord
from discord import app_commands, ui

from bot.discord.commands.command_tree import DarkroomCommandTree
from bot.discord.commands.context_menus import report_message, reproduce_message, show_job_details, use_as_prompt
from bot.discord.commands.generation.blend import blend
from bot.discord.commands.generation.describe import ImagineButton, describe
from bot.discord.commands.generation.edit import edit
from bot.discord.commands.generation.imagine import imagine
from bot.discord.commands.generation.mix import mix
from bot.discord.commands.generation.party import party, say
from bot.discord.commands.generation.reproduce import reproduce
from bot.discord.commands.generation.walk import walk
from bot.discord.commands.help import show_help
from bot.discord.commands.limits_overview import show_info
from bot.discord.commands.member.mine import JobSelect, PageButton, mine
from bot.discord.commands.member.prefer import prefer
from bot.discord.commands.member.privacy import ForgetButton, forget_me, my_data
from bot.discord.commands.member.shortcuts import fast, public, relax, stealth, turbo
from bot.discord.commands.queue import cancel, queue
from bot.discord.commands.translations import CommandTranslator
from bot.discord.components.buttons import JobButton
from bot.discord.components.keyframe_menu import KeyframeMenu
from bot.discord.components.more_menu import PictureMenu
from bot.discord.components.steering import KeepSelect
from bot.discord.extension import list_feature_commands, list_feature_items
from bot.discord.film import film
from bot.discord.settings import COMMANDS as SETTINGS

_AnyCommand = app_commands.Command[Any, ..., Any] | app_commands.ContextMenu | app_commands.Group
COMMANDS: tuple[_AnyCommand, ...] = cast(
    Any,
    (
        imagine,
        blend,
        edit,
        mix,
        walk,
        party,
        say,
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
        *(each.command for each in list_feature_commands()),
        *SETTINGS,
    ),
)
# buttons and menus that outlive a restart
DYNAMIC_ITEMS: tuple[type[ui.DynamicItem[Any]], ...] = (
    JobButton,
    PictureMenu,
    KeyframeMenu,
    KeepSelect,
    ImagineButton,
    PageButton,
    JobSelect,
    ForgetButton,
    *list_feature_items(),
)


async def build_payload() -> list[dict[str, Any]]:
    """Return the payload that Discord gets; needs no connection."""
    tree = DarkroomCommandTree(cast(Any, discord.Client(intents=discord.Intents(guilds=True))))
    await tree.set_translator(CommandTranslator())
    for command in COMMANDS:
        tree.add_command(command)
    return await tree.build_payload()
