"""A plain discord.py bot with one component of each kind, in this process: shows the library's own requests.

Tests of acts, of gateway faults and of the table of deviations use it. It is independent of Darkroom.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import discord
import pytest
import yarl
from discord import app_commands, ui
from discord.gateway import DiscordWebSocket
from discord.http import Route

from tools.loopback.server import TOKEN, Loopback, wait_until
from tools.painter import cancel_task


class TextModal(ui.Modal, title="Words"):
    """A modal with one text input."""

    text = ui.TextInput[Any](label="Text", custom_id="text")

    async def on_submit(self, interaction: discord.Interaction[Any]) -> None:
        await interaction.response.send_message(f"said {self.text.value}", ephemeral=True)


class Controls(ui.View):
    """A button, a menu, and a button that opens a modal."""

    def __init__(self) -> None:
        super().__init__(timeout=None)

    @ui.button(label="Press", custom_id="press")
    async def press(self, interaction: discord.Interaction[Any], _button: Any) -> None:
        await interaction.response.edit_message(content="pressed")

    @ui.button(label="Words", custom_id="words")
    async def words(self, interaction: discord.Interaction[Any], _button: Any) -> None:
        await interaction.response.send_modal(TextModal())

    @ui.select(custom_id="choose", options=[discord.SelectOption(label=each) for each in "abc"])
    async def choose(self, interaction: discord.Interaction[Any], menu: Any) -> None:
        await interaction.response.send_message(f"chose {menu.values[0]}")


@app_commands.command(description="Says it again")
@app_commands.describe(text="What to say", times="How often", to="Whom to")
async def say(
    interaction: discord.Interaction[discord.Client],
    text: app_commands.Range[str, 1, 100],
    times: app_commands.Range[int, 1, 3] = 1,
    to: discord.Member | None = None,
) -> None:
    content = f"{text * times} {interaction.locale} {interaction.filesize_limit} {to.display_name if to else '-'}"
    await interaction.response.send_message(content, view=Controls())


@say.autocomplete("text")
async def texts(_interaction: discord.Interaction[Any], current: str) -> list[app_commands.Choice[str]]:
    return [app_commands.Choice(name=each, value=each) for each in ("apple", "pear") if each.startswith(current)]


@app_commands.context_menu(name="Look at it")
async def look(interaction: discord.Interaction[Any], message: discord.Message) -> None:
    await interaction.response.send_message(f"{message.id}", ephemeral=True)


@app_commands.context_menu(name="Look at them")
async def meet(interaction: discord.Interaction[Any], member: discord.Member) -> None:
    await interaction.response.defer(ephemeral=True)
    await interaction.followup.send(member.name, ephemeral=True)


class PlainBot(discord.AutoShardedClient):
    """Records the events that it receives."""

    def __init__(self, **options: Any) -> None:
        intents = discord.Intents(guilds=True, guild_reactions=True, guild_messages=True)
        super().__init__(intents=intents, max_messages=None, **options)
        self.tree = app_commands.CommandTree(self)
        self.received_events: list[str] = []

    async def setup_hook(self) -> None:
        self.add_view(Controls())
        for command in (say, look, meet):
            self.tree.add_command(command)
        await self.tree.sync()

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """Skips the wait of five seconds: no other shard identifies now."""

    async def on_raw_reaction_add(self, event: discord.RawReactionActionEvent) -> None:
        self.received_events.append(str(event.emoji))

    async def on_resumed(self) -> None:
        self.received_events.append("resumed")

    async def on_shard_resumed(self, shard: int) -> None:
        self.received_events.append(f"resumed {shard}")


@asynccontextmanager
async def run_plain_bot(loopback: Loopback, monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[PlainBot]:
    """The bot, connected to an open loopback. Patches discord.py's URLs."""
    monkeypatch.setattr(Route, "BASE", loopback.api)
    monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL(loopback.gateway.url))
    async with PlainBot(**options) as client:
        task: asyncio.Task[Any] = asyncio.create_task(client.start(TOKEN))
        try:
            await wait_until(lambda: task.done() or (loopback.gateway.has_all_shards() and client.is_ready()))
            if task.done():
                task.result()
            yield client
        finally:
            await client.close()
            await cancel_task(task)


def make_file(name: str = "a.png", text: str | None = "a picture") -> discord.File:
    return discord.File(io.BytesIO(b"\x89PNG"), name, description=text)
