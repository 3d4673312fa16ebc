"""The command tree: its permission check, its error handler, and its registration with Discord.

It is registered only after a change: in a crash loop, a registration at each start would use up the day's quota. The
command ids that Discord assigns are stored beside the tree's hash, so that a message can mention a command.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import discord
from discord import app_commands

from bot.discord.checks import check_rate, report_errors, require_permission
from bot.discord.commands.translations import CommandTranslator
from bot.discord.declarations import list_command_actions, list_command_rates, list_commands
from bot.discord.responses import send_error

if TYPE_CHECKING:
    from pathlib import Path

    from bot.discord.client import DarkroomClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegisteredCommands:
    """What Discord has: the hash of the tree, and the id of each command."""

    mark: str = ""
    ids: dict[str, int] = field(default_factory=dict)


class DarkroomCommandTree(app_commands.CommandTree["DarkroomClient"]):
    """The commands. An unexpected error is logged, and the member is told."""

    def __init__(self, client: DarkroomClient) -> None:
        super().__init__(  # servers and direct messages with the bot; no user installs, no private channels
            client,
            allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
            allowed_contexts=app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False),
        )
        self.command_ids: Mapping[str, int] = {}

    async def interaction_check(self, interaction: discord.Interaction[DarkroomClient], /) -> bool:
        """Return whether they may use this command at all, so soon; the command itself checks the job."""
        name = str((interaction.data or {}).get("name", ""))
        if interaction.type is discord.InteractionType.autocomplete:
            if wait_seconds := interaction.client.token_buckets.take(f"discord:{interaction.user.id}", "suggest"):
                await interaction.response.autocomplete([])  # without an answer Discord shows an error
            return not wait_seconds
        async with report_errors(interaction, log, "the permission check of a command failed"):
            check_rate(interaction, list_command_rates().get(name, "settings"))
            if action := list_command_actions().get(name):
                await require_permission(interaction, action)
            return True
        return False

    async def on_error(
        self, interaction: discord.Interaction[DarkroomClient], error: app_commands.AppCommandError, /
    ) -> None:
        name = interaction.command.name if interaction.command else "a command"
        log.error("%s failed", name, exc_info=error)
        if interaction.type is discord.InteractionType.application_command:
            await send_error(interaction)

    async def build_payload(self) -> list[dict[str, Any]]:
        """Return the tree as Discord gets it."""
        translator = self.translator
        commands = self.get_commands()
        if translator is None:
            return [dict(command.to_dict(self)) for command in commands]
        return [await command.get_translated_payload(self, translator) for command in commands]

    async def sync_if_changed(self, state_file: Path) -> None:
        """Register the tree if Discord has another one; `state_file` stores what Discord has."""
        payload = json.dumps([self.client.application_id, await self.build_payload()], sort_keys=True)
        tree_hash = hashlib.sha256(payload.encode()).hexdigest()
        state = await asyncio.to_thread(_read_state, state_file)
        if state.mark != tree_hash:
            commands = await self._sync_or_stay_english()
            state = RegisteredCommands(tree_hash, {command.name: command.id for command in commands})
            await asyncio.to_thread(state_file.write_text, json.dumps(asdict(state)))
        self.command_ids = state.ids

    async def _sync_or_stay_english(self) -> list[app_commands.AppCommand]:
        """Register the tree; without its translations if Discord refuses it with them."""
        try:
            return await self.sync()
        except app_commands.CommandSyncFailure as error:
            log.error("The commands are registered in English only, since Discord refuses them translated: %s", error)
            await self.set_translator(None)
            return await self.sync()

    def mention(self, name: str) -> str:
        """Return a command's name, clickable if its id is known: "queue", "settings show"."""
        command_id = self.command_ids.get(name.partition(" ")[0])
        return f"</{name}:{command_id}>" if command_id else f"`/{name}`"


def _read_state(state_file: Path) -> RegisteredCommands:
    try:
        data = json.loads(state_file.read_text())
        return RegisteredCommands(
            str(data["mark"]), {str(name): int(command_id) for name, command_id in data["ids"].items()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no file yet, or not one of ours
        return RegisteredCommands()


async def build_payload() -> list[dict[str, Any]]:
    """Return the payload that Discord gets; needs no connection."""
    tree = DarkroomCommandTree(cast(Any, discord.Client(intents=discord.Intents(guilds=True))))
    await tree.set_translator(CommandTranslator())
    for command in list_commands():
        tree.add_command(command)
    return await tree.build_payload()
