"""Every command there is, in one tuple: what is registered, counted and translated."""

from __future__ import annotations

from typing import Any

from discord import app_commands

from bot.chat.help import show_help
from bot.chat.imagine import imagine
from bot.chat.queue import cancel, queue

COMMANDS: tuple[app_commands.Command[Any, ..., Any] | app_commands.ContextMenu | app_commands.Group, ...] = (
    imagine,
    queue,
    cancel,
    show_help,
)
