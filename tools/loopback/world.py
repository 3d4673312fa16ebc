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

MAX_FILE_BYTES = 10 << 20  # default limit of a file, in bytes
CDN_URL = "https://cdn.simcord.invalid"  # the base URL that simcord gives to uploads


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
        self.member_fields: dict[int, dict[str, Any]] = {}  # user id → fields that differ in their interactions

    async def _settle_internal(self, *_args: Any, **_options: Any) -> None:
        """Does not wait: the bot is another process, so a test polls for its effects."""

    def advance_clock_by(self, seconds: float) -> None:
        """Advances the clock, which makes everything older at once."""
        self.backend.advance_clock(seconds)

    def shard_of(self, event: str, payload: Mapping[str, Any]) -> int:
        """The shard of an event. Direct messages belong to the first shard."""
        guild = payload.get("guild_id") or (payload.get("id") if event.startswith("GUILD_") else None)
        return (int(guild) >> 22) % self.shards if guild else 0

    def add_member_fields(self, event: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload with the fields that differ in this member's interactions (locale, attachment_size_limit, …)."""
        if event != "INTERACTION_CREATE":
            return dict(payload)
        user = payload.get("user") or payload["member"]["user"]
        return {**payload, "attachment_size_limit": MAX_FILE_BYTES, **self.member_fields.get(int(user["id"]), {})}

    def find_channel(self, identity: int) -> ChannelHandle:
        """The handle that simcord's actors need, of a channel created elsewhere."""
        channel = self.backend.get_channel(identity)
        guild = next((one for one in self._guilds if one.id == channel.guild_id), None)
        return ChannelHandle(self, guild, channel)

    def open_thread(self, parent: ChannelHandle, name: str) -> ChannelHandle:
        """Opens a thread as the server's owner."""
        assert parent.guild
        return self.find_channel(self.backend.create_thread(parent.id, name, parent.guild.owner.id).id)

    def deny_permissions(self, channel: int, *permissions: str, is_denied: bool = True) -> None:
        """Takes these permissions in this channel from the bot, or gives them back."""
        denied_bits = discord.Permissions(**dict.fromkeys(permissions, True)).value if is_denied else 0
        self.backend.set_overwrite(channel, Overwrite(self.backend.bot_user.id, OverwriteType.MEMBER, deny=denied_bits))

    def archive(self, thread: int, *, is_archived: bool = True, is_locked: bool = False) -> None:
        self.backend.edit_channel(thread, {}, thread_metadata={"archived": is_archived, "locked": is_locked})

    def read_attachment(self, url: str) -> bytes:
        """The bytes of an attachment, by its URL on any host."""
        content = self.backend.cdn.get(CDN_URL + "/attachments/" + url.split("/attachments/", 1)[1])
        if content is None:
            raise KeyError(url)
        return content

    def list_messages(self, channel: int) -> list[Message]:
        """Every message that a channel still has, the oldest first."""
        return sorted(self.backend.messages.get(channel, {}).values(), key=lambda message: message.id)
