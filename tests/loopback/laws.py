"""Discord's rules that simcord does not keep: sizes, dead tokens, archived threads, closed conversations, old messages.

Asked before simcord carries a request out (`check`, `same`) and after it refused (`meant`). Knows nothing of HTTP but
status and code. Codes: Discord's documentation "Opcodes and Status Codes".
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

import discord
from simcord.backend.errors import BackendError, missing_access, missing_permissions
from simcord.backend.models import Channel, Message
from simcord.enums import ChannelType

from loopback.world import FILE, World

if TYPE_CHECKING:
    from loopback.asked import Asked

REQUEST = 25 << 20  # bytes of a whole request
HOUR = 3600.0
REMEMBERED = 300.0  # seconds for which a nonce is known
BY_CHANNEL = re.compile(r"/channels/(\d+)(?:/messages(?:/(\d+))?)?")
BY_TOKEN = re.compile(r"/webhooks/\d+/([^/]+)(?:/messages/([^/]+))?")


class Laws:
    """The rules, and the few of them that a test may change."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.file: int | None = None  # bytes of a file at most, whatever the interaction said
        self.old_edits = 5  # edits of messages older than an hour, in an hour and a channel; Discord does not tell it
        self.closed: set[int] = set()  # people who take no direct messages from the bot
        self.dead: set[str] = set()  # tokens that died before their time
        self._old: dict[int, list[float]] = {}
        self._nonces: dict[tuple[int, str], tuple[float, Message]] = {}

    def check(self, asked: Asked) -> None:
        """Raises what Discord would answer."""
        self._sizes(asked)
        channel, message = self._place(asked)
        if channel is None:
            return
        self._direct(asked, channel)
        self._access(asked, channel)
        self._archive(asked, channel)
        if asked.method == "PATCH" and message is not None:
            self._age(channel, message)

    def same(self, asked: Asked) -> Message | None:
        """The message that was posted with this nonce already: Discord gives it again, and posts no second one."""
        key = self._nonce(asked)
        at, known = self._nonces.get(key, (0.0, None)) if key else (0.0, None)
        return known if known and self._now() - at < REMEMBERED else None

    def posted(self, asked: Asked, told: Any) -> None:
        """A request was carried out: its nonce is remembered."""
        if key := self._nonce(asked):
            self._nonces[key] = (self._now(), self.world.backend.get_message(key[0], int(told["id"])))

    def meant(self, asked: Asked, error: BackendError) -> BackendError:
        """An old interaction's token is 401/50027, where simcord says that there is no such webhook."""
        match = BY_TOKEN.match(asked.path)
        if match and error.code == 10015 and match[1] in self.world.backend.interaction_tokens:
            return BackendError(401, 50027, "Invalid Webhook Token")
        return error

    def _nonce(self, asked: Asked) -> tuple[int, str] | None:
        match = re.fullmatch(r"/channels/(\d+)/messages", asked.path)
        body = asked.body if isinstance(asked.body, dict) else {}
        if asked.method != "POST" or not match or not body.get("enforce_nonce") or body.get("nonce") is None:
            return None
        return int(match[1]), str(body["nonce"])

    def _sizes(self, asked: Asked) -> None:
        match = BY_TOKEN.match(asked.path)
        limit = self.file if self.file is not None else self._told(match[1] if match else "")
        if asked.size > REQUEST or any(len(each.payload) > limit for each in asked.files):
            raise BackendError(413, 40005, "Request entity too large")
        if match and match[1] in self.dead:
            raise BackendError(401, 50027, "Invalid Webhook Token")

    def _told(self, token: str) -> int:
        """What the interaction of this token said of sizes."""
        backend = self.world.backend
        if token not in backend.interaction_tokens:
            return FILE
        member = backend.interactions[backend.interaction_tokens[token]].user_id
        return int(self.world.members.get(member, {}).get("attachment_size_limit", FILE))

    def _place(self, asked: Asked) -> tuple[Channel | None, Message | None]:
        backend = self.world.backend
        channel: int | None = None
        message: int | None = None
        if match := BY_CHANNEL.match(asked.path):
            channel, message = int(match[1]), int(match[2] or 0)
        elif (match := BY_TOKEN.match(asked.path)) and match[1] in backend.interaction_tokens:
            record = backend.interactions[backend.interaction_tokens[match[1]]]
            channel = record.channel_id
            message = int(match[2]) if (match[2] or "").isdecimal() else record.message_id
        found = backend.channels.get(channel) if channel else None
        return found, backend.messages.get(channel, {}).get(message) if found and channel and message else None

    def _direct(self, asked: Asked, channel: Channel) -> None:
        if channel.type == ChannelType.DM and asked.method == "POST" and self.closed & set(channel.recipient_ids):
            raise BackendError(403, 50007, "Cannot send messages to this user")

    def _access(self, asked: Asked, channel: Channel) -> None:
        """Only who sees a channel may do anything there; an interaction's token is not asked for it."""
        if channel.guild_id is None or not asked.path.startswith("/channels/"):
            return
        backend = self.world.backend
        may = discord.Permissions(backend.compute_permissions(channel.guild_id, backend.bot_user.id, channel.id))
        if not may.view_channel:
            raise missing_access()
        if asked.files and not may.attach_files:
            raise missing_permissions()

    def _archive(self, asked: Asked, channel: Channel) -> None:
        """Nothing changes in an archived thread; a new message opens it again, unless it is locked."""
        thread = channel.thread_metadata
        if thread is None or not thread.archived or asked.method == "GET":
            return
        if asked.method == "POST" and not thread.locked:
            self.world.archive(channel.id, archived=False)
            return
        raise BackendError(400, 50083, "Thread is archived")

    def _age(self, channel: Channel, message: Message) -> None:
        now = self._now()
        if now - datetime.datetime.fromisoformat(message.timestamp).timestamp() < HOUR:
            return
        spent = self._old[channel.id] = [at for at in self._old.get(channel.id, []) if at > now - HOUR]
        if len(spent) >= self.old_edits:
            raise BackendError(
                429, 30046, "Maximum number of edits to messages older than 1 hour reached. Try again later"
            )
        spent.append(now)

    def _now(self) -> float:
        return self.world.now().timestamp()
