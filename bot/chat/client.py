"""The Discord client: its gateway intents, its commands, and the courier beside it.

Does nothing at import. The courier starts before the bot, so that it misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import discord
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from bot.chat.commands import menus
from bot.chat.commands.languages import Languages
from bot.chat.commands.registered import COMMANDS, ITEMS
from bot.chat.commands.tree import Tree
from bot.chat.leaving import take_away
from bot.chat.post.counted import Edited, silent
from bot.chat.post.courier import Courier
from bot.chat.post.headers import trace
from bot.chat.post.mail import Mail
from bot.chat.presses import reporting
from bot.chat.presses.buttons import Presses, controls, submitted
from bot.chat.presses.reactions import Reactions
from bot.chat.settings import pressed
from bot.together import first_of

if TYPE_CHECKING:
    from pathlib import Path

    from bot.chat.post.edits import Edits
    from bot.config import Settings
    from bot.desk import Desk

log = logging.getLogger(__name__)

SYNCED = "discord-commands.json"  # in the data folder: the command tree that Discord has
RETRY, RETRY_AT_MOST = 15.0, 300.0  # seconds until the next attempt to connect; doubles up to the limit


class DarkroomClient(discord.AutoShardedClient):
    """The Discord client of one desk. It needs no privileged intents: interactions and reactions carry all data."""

    def __init__(self, desk: Desk, synced: Path, *, gateway: yarl.URL | None = None, **options: Any) -> None:
        super().__init__(
            intents=discord.Intents(guilds=True, guild_reactions=True, dm_reactions=True),
            allowed_mentions=discord.AllowedMentions.none(),
            member_cache_flags=discord.MemberCacheFlags.none(),
            max_messages=None,
            max_ratelimit_timeout=30.0,
            **options,
        )
        self.desk = desk
        self.studio = desk.studio
        self.presses = Presses()
        self.reactions = Reactions(self)
        self.controls = controls
        self.tree = Tree(self)
        self.keepers: frozenset[int] = frozenset()  # the operators' user ids, from the Discord application
        self.opened = asyncio.Event()  # logged in: messages can be sent
        self.answering: set[str] = set()  # tokens of the interactions whose first response is being sent
        self._synced = synced
        self._gateway = gateway

    async def setup_hook(self) -> None:
        self.add_dynamic_items(*ITEMS)
        self.desk.moderation.post = partial(reporting.post, self)
        self.desk.forgetting.take_away = partial(take_away, self)
        self.keepers = keepers_of(await self.application_info())
        for command in COMMANDS:
            self.tree.add_command(command)
        await self.tree.set_translator(Languages())
        await self.tree.register(self._synced)
        self.opened.set()

    async def launch_shard(self, gateway: yarl.URL, shard_id: int, *, initial: bool = False) -> None:
        await super().launch_shard(self._gateway or gateway, shard_id, initial=initial)

    async def on_interaction(self, interaction: discord.Interaction[Any]) -> None:
        """Handle settings cards and forms, which keep no state here: their custom ids identify them."""
        await pressed(interaction)
        await submitted(interaction)
        await menus.submitted(interaction)

    async def on_raw_reaction_add(self, payload: discord.RawReactionActionEvent) -> None:
        await self.reactions.added(payload)

    async def on_ready(self) -> None:
        log.info("Discord: %s is in %d servers", self.user, len(self.guilds))


def keepers_of(application: discord.AppInfo) -> frozenset[int]:
    """Return the application's owner; of a team, the accepted members who are not read-only."""
    if application.team is None:
        return frozenset({application.owner.id})
    return frozenset(
        member.id
        for member in application.team.members
        if member.membership_state == discord.TeamMembershipState.accepted
        and member.role != discord.TeamMemberRole.read_only
    )


def open_client(settings: Settings, desk: Desk, edits: Edits[Any] | None = None) -> DarkroomClient:
    """Return a client that is not connected yet. `edits` learns Discord's rate limits from response headers."""
    Route.BASE = settings.discord_api.rstrip("/")
    gateway = yarl.URL(settings.discord_gateway) if settings.discord_gateway else None
    if gateway:
        DiscordWebSocket.DEFAULT_GATEWAY = gateway  # where it reconnects after a lost session
    options = {} if edits is None else {"http_trace": trace(edits, time.monotonic)}
    return DarkroomClient(desk, settings.data / SYNCED, gateway=gateway, **options)


async def serve(settings: Settings, desk: Desk, edited: Edited = silent) -> None:
    """Run the client until cancelled. A rejected token is logged once, and the rest of the bot goes on without Discord.

    `edited` is called for each request about a message, with its kind and its outcome.
    """
    if settings.discord_token is None:
        return
    token, pause = settings.discord_token.get_secret_value(), RETRY
    while True:
        try:
            await _connected(settings, desk, token, edited)
        except discord.LoginFailure:
            log.error("Discord refused DISCORD_TOKEN: copy it again from discord.com/developers, and start again")
            return
        except (aiohttp.ClientError, OSError, discord.DiscordException) as error:
            log.warning("Discord cannot be reached, next attempt in %.0f s: %s", pause, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_AT_MOST)


async def _connected(settings: Settings, desk: Desk, token: str, edited: Edited) -> None:
    """Run one connection and its courier until one of them ends; that ends both."""
    edits = Courier.policy()
    client = open_client(settings, desk, edits)
    async with client:
        courier = Courier(desk, Mail(client), edits, public=settings.public_url, edited=edited)
        await first_of(courier.run(), client.start(token))
