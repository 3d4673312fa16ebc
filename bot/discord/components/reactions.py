"""Reactions, as in Midjourney: an envelope sends the pictures to the member who reacts, a cross cancels or deletes.

Features may give other reactions a meaning. Only raw events: no message is kept or fetched. A reaction to another
message costs one index lookup, and the bot handles only five reactions of a member in a minute. A refused reaction gets
no response, since none could be ephemeral.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import discord
from cachetools import LRUCache

from bot.discord.cards.job_cards import MAX_ALT, NO_PROMPT, message_link, render_parameters
from bot.discord.cards.pictures import EXTENSIONS, UPLOAD_LIMIT
from bot.discord.components.deletion import delete_job
from bot.discord.declarations import load_feature_reactions
from bot.discord.responses import (
    NO_MENTIONS,
    can_see_channel,
    guild_permissions,
    private_thread_of,
    with_channel_privacy,
)
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.domain.texts import escape_discord, shorten
from bot.pictures import grid
from bot.policy.permissions import Action, forbidden_reason, job_ref

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView

log = logging.getLogger(__name__)

ENVELOPES = "✉📩📨💌"
CROSS = "❌"
VARIANTS = "\ufe0f🏻🏼🏽🏾🏿"  # draw the sign as an emoji, with one of the skin colours
# reactions of one member that are handled, in so many seconds
MAX_REACTIONS = 5
WINDOW_SECONDS = 60.0
MAX_MEMBERS = 4096  # members


class ReactionLimiter:
    """Counts each member's recent reactions; forgets the members seen longest ago."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: LRUCache[int, deque[float]] = LRUCache(MAX_MEMBERS)

    def allow(self, user_id: int) -> bool:
        """Return whether the member may react once more now, and count it."""
        now = self._clock()
        times = self._recent.setdefault(user_id, deque(maxlen=MAX_REACTIONS))
        if len(times) == MAX_REACTIONS and times[0] > now - WINDOW_SECONDS:
            return False
        times.append(now)
        return True


class Reactions:
    """Handles every added reaction, which the client passes on."""

    def __init__(self, client: DarkroomClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._limiter = ReactionLimiter(clock)
        self._closed_dms: LRUCache[int, None] = LRUCache(MAX_MEMBERS)  # members whose direct messages are closed

    async def handle(self, payload: discord.RawReactionActionEvent) -> None:
        """Do what the reaction means, if it means something and the member may."""
        sign = "" if payload.emoji.id else payload.emoji.name.rstrip(VARIANTS)
        is_known = sign in (*ENVELOPES, CROSS, *load_feature_reactions())
        if not is_known or not self._is_relevant(payload) or not self._limiter.allow(payload.user_id):
            return
        try:
            job = await self._client.services.deliveries.find_job(str(payload.message_id))
            member = None if job is None else self._build_member(payload)
            if job is not None and member is not None:
                await self._apply_reaction(sign, job, member, payload)
        except UserError as error:
            log.info("a reaction to message %s was refused: %s", payload.message_id, error.sentence)
        except Exception:
            log.exception("a reaction to message %s failed", payload.message_id)

    def _is_relevant(self, payload: discord.RawReactionActionEvent) -> bool:
        """Return whether a person reacted, probably to a message of the bot."""
        bot_user = self._client.user
        is_by_bot = payload.member is not None and payload.member.bot
        if bot_user is None or is_by_bot or payload.user_id == bot_user.id:
            return False
        return payload.message_author_id in (None, bot_user.id)

    def _build_member(self, payload: discord.RawReactionActionEvent) -> Member | None:
        """Return the member who reacted, with their permissions there; None while their server is not cached."""
        member_id = f"discord:{payload.user_id}"
        is_operator = payload.user_id in self._client.operator_ids
        if payload.guild_id is None:
            cached_user = self._client.get_user(payload.user_id)
            name = cached_user.display_name if cached_user else "Somebody"
            return Member(member_id, name, f"discord:dm:{payload.user_id}", is_operator=is_operator)
        guild_member = payload.member
        if guild_member is None:
            return None
        channel = guild_member.guild.get_channel_or_thread(payload.channel_id)
        member_permissions = guild_permissions(guild_member)
        return Member(
            member_id,
            guild_member.display_name,
            f"discord:{payload.guild_id}",
            is_moderator=member_permissions.manage_messages,
            is_admin=member_permissions.manage_guild,
            is_owner=guild_member.guild.owner_id == guild_member.id,
            is_operator=is_operator,
            roles=tuple(str(role.id) for role in guild_member.roles),
            channel=str(getattr(channel, "parent_id", None) or payload.channel_id),
            thread=private_thread_of(channel),
            can_see=partial(can_see_channel, guild_member),
            age_restricted=bool(channel is not None and channel.is_nsfw()),
        )

    async def _apply_reaction(
        self, sign: str, job: str, member: Member, payload: discord.RawReactionActionEvent
    ) -> None:
        services = self._client.services
        view = await services.job_views.load_view(job)

        async def require_permission(action: Action) -> None:
            subject = job_ref(with_channel_privacy(view, member))
            if reason := forbidden_reason(action, member, subject, in_direct_message=payload.guild_id is None):
                raise UserError(reason, 403)
            await services.rule_admin.check_command(member, action)

        if react := load_feature_reactions().get(sign):
            await react(services, view, member, require_permission)
        elif sign in ENVELOPES:
            await require_permission("envelope")
            try:
                await send_pictures(self._client, view, payload.user_id)
            except discord.Forbidden as error:
                if payload.user_id not in self._closed_dms:
                    log.info("pictures could not be sent to a member: %s", error)
                self._closed_dms[payload.user_id] = None
        elif is_end(view.state):
            await require_permission("delete")
            await delete_job(self._client, job, member)
        else:
            await services.job_control.cancel(job, member)


async def send_pictures(client: DarkroomClient, view: JobView, user_id: int) -> None:
    """Send the pictures that may be shown, if any. Raises `discord.Forbidden` if direct messages are closed."""
    if view.state != "finished" or view.deleted_at is not None:
        return
    files = await _picture_files(client, view)
    if not files:
        return
    target = (await client.services.deliveries.answer_destination(view.id)).address
    channel = await client.create_dm(discord.Object(user_id))
    await channel.send(_render_message(view, message_link(target)), files=files, allowed_mentions=NO_MENTIONS)


async def _picture_files(client: DarkroomClient, view: JobView) -> list[discord.File]:
    """Return the pictures that may be shown, all together within the upload limit of every conversation."""
    files: list[discord.File] = []
    for picture in view.pictures:
        try:
            content = await client.services.gallery.read_picture(view.id, picture.index)
        except UserError:  # held by the picture check, or not kept any more
            continue
        result = await asyncio.to_thread(grid.shrink_to_fit, content, UPLOAD_LIMIT // len(view.pictures))
        if result is not None:
            payload, file_format = result
            name = f"darkroom-{view.id}-{picture.index + 1}.{EXTENSIONS[file_format]}"
            files.append(discord.File(io.BytesIO(payload), name, description=shorten(view.prompt, MAX_ALT)))
    return files


def _render_message(view: JobView, address: str) -> str:
    head = f"✉️ **{escape_discord(view.prompt or NO_PROMPT, 600)}** · {escape_discord(view.member_name, 64)}"
    settings_line = escape_discord(render_parameters(view).splitlines()[-1], 600)
    return "\n".join(part for part in (head, settings_line, f"-# Job `{view.id}`", address) if part)
