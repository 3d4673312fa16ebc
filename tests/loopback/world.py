"""simcord's world on the time of day: guilds, channels, messages and people, with nobody's bot inside.

Its actors act as simcord checks them (nobody presses a missing button), but what they cause goes out as gateway events
to whoever listens; nothing waits for a bot to settle. Knows nothing of HTTP or sockets.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import discord
import simcord
from simcord._clock import Clock
from simcord.backend.models import Overwrite
from simcord.builders import ChannelHandle
from simcord.enums import OverwriteType

if TYPE_CHECKING:
    from simcord.backend.models import Message

FILE = 10 << 20  # bytes of a file at most, where nothing else is said
EVERYWHERE = "https://cdn.simcord.invalid"  # where simcord says that uploads lie


class Wall(Clock):
    """The time of day; `advance` shifts it for good, so that tokens and messages grow old."""

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.elapsed)


class World(simcord.Env):
    """One Discord. `shards`: how many gateway connections a bot is told to open."""

    def __init__(self, shards: int = 1) -> None:
        nobody = discord.AutoShardedClient(intents=discord.Intents(guilds=True), shard_count=shards)  # never started
        super().__init__(nobody)
        self.backend.clock = Wall()
        self.shards = shards
        self.members: dict[int, dict[str, Any]] = {}  # user id → what their interactions say differently

    async def _settle_internal(self, *_args: Any, **_options: Any) -> None:
        """The bot is another process: whoever wants to see what it did looks for it."""

    def later(self, seconds: float) -> None:
        """Everything becomes that much older, at once."""
        self.backend.advance_clock(seconds)

    def shard_of(self, event: str, payload: Mapping[str, Any]) -> int:
        """The shard that an event belongs to; direct messages belong to the first one."""
        guild = payload.get("guild_id") or (payload.get("id") if event.startswith("GUILD_") else None)
        return (int(guild) >> 22) % self.shards if guild else 0

    def as_told(self, event: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload, with what this member's interactions say differently (locale, attachment_size_limit, …)."""
        if event != "INTERACTION_CREATE":
            return dict(payload)
        user = payload.get("user") or payload["member"]["user"]
        return {**payload, "attachment_size_limit": FILE, **self.members.get(int(user["id"]), {})}

    def channel(self, identity: int) -> ChannelHandle:
        """A channel that somebody else opened, as simcord's actors take it."""
        channel = self.backend.get_channel(identity)
        guild = next((one for one in self._guilds if one.id == channel.guild_id), None)
        return ChannelHandle(self, guild, channel)

    def thread(self, parent: ChannelHandle, name: str) -> ChannelHandle:
        """A thread that the server's owner opened."""
        assert parent.guild
        return self.channel(self.backend.create_thread(parent.id, name, parent.guild.owner.id).id)

    def forbid(self, channel: int, *permissions: str, forbidden: bool = True) -> None:
        """The bot may (not) do this in this channel any more."""
        deny = discord.Permissions(**dict.fromkeys(permissions, True)).value if forbidden else 0
        self.backend.set_overwrite(channel, Overwrite(self.backend.bot_user.id, OverwriteType.MEMBER, deny=deny))

    def archive(self, thread: int, *, archived: bool = True, locked: bool = False) -> None:
        self.backend.edit_channel(thread, {}, thread_metadata={"archived": archived, "locked": locked})

    def file(self, url: str) -> bytes:
        """The bytes of an attachment, by its address at whichever host."""
        found = self.backend.cdn.get(EVERYWHERE + "/attachments/" + url.split("/attachments/", 1)[1])
        if found is None:
            raise KeyError(url)
        return found

    def messages(self, channel: int) -> list[Message]:
        """Every message of a channel that is still there, the oldest first."""
        return sorted(self.backend.messages.get(channel, {}).values(), key=lambda message: message.id)
