"""Starts Discord: the running client with its commands and components, and the courier beside it.

The courier starts before the client connects, so that it misses no event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import discord
import yarl
from discord import ui
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.discord.client import ButtonCard, DarkroomClient
from bot.discord.commands import context_menus
from bot.discord.commands.command_tree import CommandTranslator, DarkroomCommandTree
from bot.discord.components import review_buttons
from bot.discord.components.buttons import build_view, handle_job_form
from bot.discord.components.deletion import delete_message
from bot.discord.components.reactions import Reactions
from bot.discord.declarations import list_commands, list_dynamic_items
from bot.discord.delivery.courier import Courier, EditContent, RequestCounter, count_nothing
from bot.discord.delivery.discord_api import MessageClient, trace_rate_limits
from bot.discord.delivery.edit_policy import EditPolicy
from bot.discord.settings.responses import dispatch_press
from bot.domain.concurrency import race
from bot.services.front_end_actions import FrontEndActions

if TYPE_CHECKING:
    from pathlib import Path

    from bot.app.settings import Settings
    from bot.discord.cards.job_cards import Card
    from bot.services import Services

log = logging.getLogger(__name__)

COMMANDS_FILE = "discord-commands.json"  # in the data folder: the command tree that Discord has
# seconds until the next attempt to connect; doubles up to the limit
RETRY_DELAY = 15.0
MAX_RETRY_DELAY = 300.0


class RunningClient(DarkroomClient):
    """The client with its commands, buttons and reactions."""

    def __init__(
        self, services: Services, commands_file: Path, *, gateway: yarl.URL | None = None, **options: Any
    ) -> None:
        super().__init__(services, **options)
        self.reactions = Reactions(self)
        self.tree = DarkroomCommandTree(self)
        self._commands_file = commands_file
        self._gateway = gateway

    def build_view(self, card: ButtonCard) -> ui.View | None:
        return build_view(cast("Card", card))

    def mention_command(self, name: str) -> str:
        return self.tree.mention(name)

    async def setup_hook(self) -> None:
        self.add_dynamic_items(*list_dynamic_items())
        self.services.get(FrontEndActions).connect(
            post_report=partial(review_buttons.post_report, self),
            delete_message=partial(delete_message, self, raise_unreachable=True),
        )
        self.operator_ids = operator_ids_of(await self.application_info())
        for command in list_commands():
            self.tree.add_command(command)
        await self.tree.set_translator(CommandTranslator())
        await self.tree.sync_if_changed(self._commands_file)
        self.login_done.set()

    async def launch_shard(self, gateway: yarl.URL, shard_id: int, *, initial: bool = False) -> None:
        await super().launch_shard(self._gateway or gateway, shard_id, initial=initial)

    async def on_interaction(self, interaction: discord.Interaction[Any]) -> None:
        """Handle settings cards and forms, which keep no state here: their custom ids identify them."""
        if interaction.type not in (discord.InteractionType.component, discord.InteractionType.modal_submit):
            return
        await dispatch_press(interaction)
        await handle_job_form(interaction)
        await context_menus.handle_prompt_form(interaction)

    async def on_raw_reaction_add(self, payload: discord.RawReactionActionEvent) -> None:
        await self.reactions.handle(payload)

    async def on_ready(self) -> None:
        log.info("Discord: %s is in %d servers", self.user, len(self.guilds))


def operator_ids_of(application: discord.AppInfo) -> frozenset[int]:
    """Return the application's owner; of a team, the accepted members who are not read-only."""
    if application.team is None:
        return frozenset({application.owner.id})
    return frozenset(
        member.id
        for member in application.team.members
        if member.membership_state == discord.TeamMembershipState.accepted
        and member.role != discord.TeamMemberRole.read_only
    )


def create_client(settings: Settings, services: Services, edits: EditPolicy[Any] | None = None) -> RunningClient:
    """Return a client that is not connected yet. `edits` learns Discord's rate limits from response headers."""
    Route.BASE = settings.discord_api.rstrip("/")
    gateway = yarl.URL(settings.discord_gateway) if settings.discord_gateway else None
    if gateway:
        DiscordWebSocket.DEFAULT_GATEWAY = gateway  # the gateway to which it reconnects after a lost session
    options = {} if edits is None else {"http_trace": trace_rate_limits(edits, time.monotonic)}
    return RunningClient(services, settings.data / COMMANDS_FILE, gateway=gateway, **options)


async def run_client(settings: Settings, services: Services, on_edit: RequestCounter = count_nothing) -> None:
    """Run the client until cancelled. A rejected token is logged once, and the rest of the bot goes on without Discord.

    `on_edit` is called for each request about a message, with its kind and its outcome.
    """
    if settings.discord_token is None:
        return
    token = settings.discord_token.get_secret_value()
    retry_delay = RETRY_DELAY
    while True:
        try:
            await _run_connection(settings, services, token, on_edit)
        except discord.LoginFailure:
            log.error("Discord refused DISCORD_TOKEN: copy it again from discord.com/developers, and start again")
            return
        except (aiohttp.ClientError, OSError, discord.DiscordException) as error:
            log.warning("Discord cannot be reached, next attempt in %.0f s: %s", retry_delay, error)
        await asyncio.sleep(retry_delay)
        retry_delay = min(2 * retry_delay, MAX_RETRY_DELAY)


async def _run_connection(settings: Settings, services: Services, token: str, on_edit: RequestCounter) -> None:
    """Run one connection and its courier until one of them ends; that ends both."""
    edits = EditPolicy[EditContent]()
    client = create_client(settings, services, edits)
    async with client:
        courier = Courier(services, MessageClient(client), edits, public_url=settings.public_url, count_outcome=on_edit)
        await race(courier.run(), client.start(token))
