"""simcord's world in real time: guilds, channels, messages and members, without a bot inside.

simcord checks what its actors do (nobody can press a missing button). The effects go out as gateway events to every
listener; nothing waits for a bot to settle. Knows nothing of HTTP or sockets.
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

FILE = 10 << 20  # default limit of a file, in bytes
EVERYWHERE = "https://cdn.simcord.invalid"  # the base URL that simcord gives to uploads


class WallClock(Clock):
    """The time of day. `advance` shifts it for good, which ages tokens and messages."""

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.elapsed)


class World(simcord.Env):
    """One Discord. `shards`: how many gateway connections a bot has to open."""

    def __init__(self, shards: int = 1) -> None:
        client = discord.AutoShardedClient(intents=discord.Intents(guilds=True), shard_count=shards)  # never started
        super().__init__(client)
        self.backend.clock = WallClock()
        self.shards = shards
        self.members: dict[int, dict[str, Any]] = {}  # user id → fields that differ in their interactions

    async def _settle_internal(self, *_args: Any, **_options: Any) -> None:
        """Does not wait: the bot is another process, so a test polls for its effects."""

    def later(self, seconds: float) -> None:
        """Makes everything that much older at once."""
        self.backend.advance_clock(seconds)

    def shard_of(self, event: str, payload: Mapping[str, Any]) -> int:
        """The shard of an event. Direct messages belong to the first shard."""
        guild = payload.get("guild_id") or (payload.get("id") if event.startswith("GUILD_") else None)
        return (int(guild) >> 22) % self.shards if guild else 0

    def as_told(self, event: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload with the fields that differ in this member's interactions (locale, attachment_size_limit, …)."""
        if event != "INTERACTION_CREATE":
            return dict(payload)
        user = payload.get("user") or payload["member"]["user"]
        return {**payload, "attachment_size_limit": FILE, **self.members.get(int(user["id"]), {})}

    def channel(self, identity: int) -> ChannelHandle:
        """The handle that simcord's actors need, of a channel created elsewhere."""
        channel = self.backend.get_channel(identity)
        guild = next((one for one in self._guilds if one.id == channel.guild_id), None)
        return ChannelHandle(self, guild, channel)

    def thread(self, parent: ChannelHandle, name: str) -> ChannelHandle:
        """Opens a thread as the server's owner."""
        assert parent.guild
        return self.channel(self.backend.create_thread(parent.id, name, parent.guild.owner.id).id)

    def forbid(self, channel: int, *permissions: str, forbidden: bool = True) -> None:
        """Takes these permissions in this channel from the bot, or gives them back."""
        deny = discord.Permissions(**dict.fromkeys(permissions, True)).value if forbidden else 0
        self.backend.set_overwrite(channel, Overwrite(self.backend.bot_user.id, OverwriteType.MEMBER, deny=deny))

    def archive(self, thread: int, *, archived: bool = True, locked: bool = False) -> None:
        self.backend.edit_channel(thread, {}, thread_metadata={"archived": archived, "locked": locked})

    def file(self, url: str) -> bytes:
        """The bytes of an attachment, by its URL on any host."""
        found = self.backend.cdn.get(EVERYWHERE + "/attachments/" + url.split("/attachments/", 1)[1])
        if found is None:
            raise KeyError(url)
        return found

    def messages(self, channel: int) -> list[Message]:
        """Every message that a channel still has, the oldest first."""
        return sorted(self.backend.messages.get(channel, {}).values(), key=lambda message: message.id)
