"""The tree of commands: who may use one, what an error becomes, and that Discord has the tree as we have it.

Registered only when it changed: at each start that would burn the day's quota in a crash loop. The ids that Discord
gives are kept beside the tree's hash, so that a message can name a command in a way that opens it.
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
    """The commands; an error of ours is logged, and told as such to the member."""

    def __init__(self, client: DarkroomClient) -> None:
        super().__init__(  # where the bot is a member: its pictures are messages of a channel
            client,
            allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
            allowed_contexts=app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False),
        )
        self.ids: Mapping[str, int] = {}

    async def interaction_check(self, interaction: discord.Interaction[DarkroomClient], /) -> bool:
        """Whether they may use this command at all; on whose job, the command asks itself."""
        action = COMMANDS.get(str((interaction.data or {}).get("name", "")))
        if action is None or interaction.type is discord.InteractionType.autocomplete:
            return True
        try:
            async with refusing(interaction):
                await permit(interaction, action)
                return True
        except Exception:  # the library would let the member wait for an answer that never comes
            log.exception("who may use a command could not be found out")
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
        """The tree as it is sent to Discord."""
        translator, commands = self.translator, self.get_commands()
        if translator is None:
            return [dict(command.to_dict(self)) for command in commands]
        return [await command.get_translated_payload(self, translator) for command in commands]

    async def register(self, memory: Path) -> None:
        """Have Discord know the tree; `memory` says what it knows already."""
        told = json.dumps([self.client.application_id, await self.payload()], sort_keys=True)
        mark = hashlib.sha256(told.encode()).hexdigest()
        known = await asyncio.to_thread(_read, memory)
        if known.mark != mark:
            known = Synced(mark, {command.name: command.id for command in await self.sync()})
            await asyncio.to_thread(memory.write_text, json.dumps(asdict(known)))
        self.ids = known.ids

    def mention(self, name: str) -> str:
        """A command's name, to be clicked where its id is known: "queue", "settings show"."""
        number = self.ids.get(name.partition(" ")[0])
        return f"</{name}:{number}>" if number else f"`/{name}`"


def _read(memory: Path) -> Synced:
    try:
        found = json.loads(memory.read_text())
        return Synced(str(found["mark"]), {str(name): int(number) for name, number in found["ids"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or one of an older version
        return Synced()
