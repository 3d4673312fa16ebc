"""Discord's rules that simcord lacks: sizes, expired tokens, archived threads, closed direct messages, old messages.

The server calls `check` and `find_duplicate` before simcord, and `translate_error` after simcord refuses a request.
Of HTTP it knows only status and code. Codes: Discord's documentation "Opcodes and Status Codes".
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

import discord
from simcord.backend.errors import BackendError, missing_access, missing_permissions
from simcord.backend.models import Channel, Message
from simcord.enums import ChannelType

from tools.loopback.world import MAX_FILE_BYTES, World

if TYPE_CHECKING:
    from tools.loopback.recorded_request import RecordedRequest

MAX_REQUEST = 25 << 20  # bytes of a whole request
HOUR = 3600.0
NONCE_SECONDS = 300.0  # seconds for which Discord keeps a nonce
CHANNEL_PATH = re.compile(r"/channels/(\d+)(?:/messages(?:/(\d+))?)?")
WEBHOOK_PATH = re.compile(r"/webhooks/\d+/([^/]+)(?:/messages/([^/]+))?")


class DiscordRules:
    """The rules. A test may change the public attributes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.max_file_bytes: int | None = None  # bytes of a file at most; overrides the interaction's limit
        self.old_edits = 5  # edits of messages older than an hour, per hour and channel; Discord does not publish it
        self.closed_to_direct_messages: set[int] = set()  # members who accept no direct messages from the bot
        self.expired_tokens: set[str] = set()  # tokens that expired early
        self._old_edit_times: dict[int, list[float]] = {}
        self._nonces: dict[tuple[int, str], tuple[float, Message]] = {}

    def check(self, call: RecordedRequest) -> None:
        """Raises the error that Discord would answer."""
        self._check_sizes(call)
        channel, message = self._find_target(call)
        if channel is None:
            return
        self._check_direct(call, channel)
        self._check_access(call, channel)
        self._check_archive(call, channel)
        if call.method == "PATCH" and message is not None:
            self._check_edit_age(channel, message)

    def find_duplicate(self, call: RecordedRequest) -> Message | None:
        """The message already posted with this nonce: Discord returns it and posts no second one."""
        key = self._nonce(call)
        time, message = self._nonces.get(key, (0.0, None)) if key else (0.0, None)
        return message if message and self._now() - time < NONCE_SECONDS else None

    def record_nonce(self, call: RecordedRequest, message: Any) -> None:
        """Remembers the nonce of a request that took effect."""
        if key := self._nonce(call):
            self._nonces[key] = (self._now(), self.world.backend.get_message(key[0], int(message["id"])))

    def translate_error(self, call: RecordedRequest, error: BackendError) -> BackendError:
        """Turns simcord's "no such webhook" for an expired interaction token into Discord's 401/50027."""
        match = WEBHOOK_PATH.match(call.path)
        if match and error.code == 10015 and match[1] in self.world.backend.interaction_tokens:
            return BackendError(401, 50027, "Invalid Webhook Token")
        return error

    def _nonce(self, call: RecordedRequest) -> tuple[int, str] | None:
        match = re.fullmatch(r"/channels/(\d+)/messages", call.path)
        body = call.body if isinstance(call.body, dict) else {}
        if call.method != "POST" or not match or not body.get("enforce_nonce") or body.get("nonce") is None:
            return None
        return int(match[1]), str(body["nonce"])

    def _check_sizes(self, call: RecordedRequest) -> None:
        match = WEBHOOK_PATH.match(call.path)
        limit = (
            self.max_file_bytes
            if self.max_file_bytes is not None
            else self._stated_size_limit(match[1] if match else "")
        )
        if call.size > MAX_REQUEST or any(len(each.payload) > limit for each in call.files):
            raise BackendError(413, 40005, "Request entity too large")
        if match and match[1] in self.expired_tokens:
            raise BackendError(401, 50027, "Invalid Webhook Token")

    def _stated_size_limit(self, token: str) -> int:
        """The file size limit that this token's interaction stated."""
        backend = self.world.backend
        if token not in backend.interaction_tokens:
            return MAX_FILE_BYTES
        member = backend.interactions[backend.interaction_tokens[token]].user_id
        return int(self.world.member_fields.get(member, {}).get("attachment_size_limit", MAX_FILE_BYTES))

    def _find_target(self, call: RecordedRequest) -> tuple[Channel | None, Message | None]:
        backend = self.world.backend
        channel: int | None = None
        message: int | None = None
        if match := CHANNEL_PATH.match(call.path):
            channel = int(match[1])
            message = int(match[2] or 0)
        elif (match := WEBHOOK_PATH.match(call.path)) and match[1] in backend.interaction_tokens:
            record = backend.interactions[backend.interaction_tokens[match[1]]]
            channel = record.channel_id
            message = int(match[2]) if (match[2] or "").isdecimal() else record.message_id
        target_channel = backend.channels.get(channel) if channel else None
        return target_channel, backend.messages.get(channel, {}).get(
            message
        ) if target_channel and channel and message else None

    def _check_direct(self, call: RecordedRequest, channel: Channel) -> None:
        if (
            channel.type == ChannelType.DM
            and call.method == "POST"
            and self.closed_to_direct_messages & set(channel.recipient_ids)
        ):
            raise BackendError(403, 50007, "Cannot send messages to this user")

    def _check_access(self, call: RecordedRequest, channel: Channel) -> None:
        """A bot needs view permission to act in a channel; an interaction's token does not."""
        if channel.guild_id is None or not call.path.startswith("/channels/"):
            return
        backend = self.world.backend
        permissions = discord.Permissions(
            backend.compute_permissions(channel.guild_id, backend.bot_user.id, channel.id)
        )
        if not permissions.view_channel:
            raise missing_access()
        if call.files and not permissions.attach_files:
            raise missing_permissions()

    def _check_archive(self, call: RecordedRequest, channel: Channel) -> None:
        """Nothing changes in an archived thread. A new message reopens it, unless it is locked."""
        thread = channel.thread_metadata
        if thread is None or not thread.archived or call.method == "GET":
            return
        if call.method == "POST" and not thread.locked:
            self.world.archive(channel.id, is_archived=False)
            return
        raise BackendError(400, 50083, "Thread is archived")

    def _check_edit_age(self, channel: Channel, message: Message) -> None:
        now = self._now()
        if now - datetime.datetime.fromisoformat(message.timestamp).timestamp() < HOUR:
            return
        edits = self._old_edit_times[channel.id] = [
            time for time in self._old_edit_times.get(channel.id, []) if time > now - HOUR
        ]
        if len(edits) >= self.old_edits:
            raise BackendError(
                429, 30046, "Maximum number of edits to messages older than 1 hour reached. Try again later"
            )
        edits.append(now)

    def _now(self) -> float:
        return self.world.now().timestamp()
