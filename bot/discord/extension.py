"""What features add to Discord: their `discord` modules may have `COMMANDS`, `DYNAMIC_ITEMS` and `PREFERENCES`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from discord import ui

from bot.domain.feature import load_parts, merge_rows
from bot.domain.permission import Action


@dataclass(frozen=True)
class FeatureCommand:
    """A command of discord.py, or a group.

    `action`: its row in the table of permissions. `rate`: what it is charged for, if that is another action. `help`: a
    few words for `/help`.
    """

    command: Any  # discord.py types each command by its own parameters
    action: Action
    help: str
    rate: Action | None = None


@cache
def list_feature_commands() -> tuple[FeatureCommand, ...]:
    """Return the commands of all features."""
    return tuple(command for module in load_parts("discord").values() for command in getattr(module, "COMMANDS", ()))


@cache
def list_feature_items() -> tuple[type[ui.DynamicItem[Any]], ...]:
    """Return the buttons and menus of all features that outlive a restart."""
    parts = load_parts("discord").values()
    return tuple(item for module in parts for item in getattr(module, "DYNAMIC_ITEMS", ()))


def list_preference_commands() -> dict[str, str]:
    """Return the subcommands of `/prefer` that features add (`PREFERENCES`), each with what it has, in a few words."""
    return merge_rows({}, *(getattr(module, "PREFERENCES", {}) for module in load_parts("discord").values()))
