"""The command tree: its permission check, its error handler, and its registration with Discord.

It is registered only after a change: once at each start would use up the day's quota in a crash loop. The command ids
that Discord assigns are stored beside the tree's hash, so that a message can mention a command.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands

from bot.chat.answer import sorry
from bot.chat.permitted import COMMANDS, permit, refusing

if TYPE_CHECKING:
    from pathlib import Path

    from bot.chat.client import DarkroomClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synced:
    """What Discord has: the hash of the tree, and the id of each command."""

    mark: str = ""
    ids: dict[str, int] = field(default_factory=dict)


class Tree(app_commands.CommandTree["DarkroomClient"]):
    """The commands. An unexpected error is logged, and the member is told."""

    def __init__(self, client: DarkroomClient) -> None:
        super().__init__(  # servers only: pictures are messages in channels of the bot
            client,
            allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
            allowed_contexts=app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False),
        )
        self.ids: Mapping[str, int] = {}

    async def interaction_check(self, interaction: discord.Interaction[DarkroomClient], /) -> bool:
        """Return whether they may use this command at all; the command itself checks the job."""
        action = COMMANDS.get(str((interaction.data or {}).get("name", "")))
        if action is None or interaction.type is discord.InteractionType.autocomplete:
            return True
        try:
            async with refusing(interaction):
                await permit(interaction, action)
                return True
        except Exception:  # discord.py would leave the member without a response
            log.exception("the permission check of a command failed")
            await sorry(interaction)
        return False

    async def on_error(
        self, interaction: discord.Interaction[DarkroomClient], error: app_commands.AppCommandError, /
    ) -> None:
        name = interaction.command.name if interaction.command else "a command"
        log.error("%s failed", name, exc_info=error)
        if interaction.type is discord.InteractionType.application_command:
            await sorry(interaction)

    async def payload(self) -> list[dict[str, Any]]:
        """Return the tree as Discord gets it."""
        translator, commands = self.translator, self.get_commands()
        if translator is None:
            return [dict(command.to_dict(self)) for command in commands]
        return [await command.get_translated_payload(self, translator) for command in commands]

    async def register(self, memory: Path) -> None:
        """Register the tree if Discord has another one; `memory` stores what Discord has."""
        told = json.dumps([self.client.application_id, await self.payload()], sort_keys=True)
        mark = hashlib.sha256(told.encode()).hexdigest()
        known = await asyncio.to_thread(_read, memory)
        if known.mark != mark:
            known = Synced(mark, {command.name: command.id for command in await self.sync()})
            await asyncio.to_thread(memory.write_text, json.dumps(asdict(known)))
        self.ids = known.ids

    def mention(self, name: str) -> str:
        """Return a command's name, clickable if its id is known: "queue", "settings show"."""
        number = self.ids.get(name.partition(" ")[0])
        return f"</{name}:{number}>" if number else f"`/{name}`"


def _read(memory: Path) -> Synced:
    try:
        found = json.loads(memory.read_text())
        return Synced(str(found["mark"]), {str(name): int(number) for name, number in found["ids"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or one of an older version
        return Synced()
