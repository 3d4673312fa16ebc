"""Reactions, as in Midjourney: an envelope sends the pictures to the member who reacts, a cross cancels or deletes.

Only raw events: no message is kept or fetched. A reaction to others' messages costs one index lookup, and only five
reactions of a member in a minute are looked at. A refused reaction gets no response: there is no ephemeral one.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import discord

from bot.access import Action, forbidden, subject_of
from bot.chat.presses.envelope import send
from bot.chat.presses.removal import delete
from bot.chat.standing import permissions
from bot.refused import Refused
from bot.states import over
from bot.views import Member

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import View

log = logging.getLogger(__name__)

Meaning = Literal["envelope", "cross"]

MEANINGS: dict[str, Meaning] = {"✉": "envelope", "📩": "envelope", "📨": "envelope", "💌": "envelope", "❌": "cross"}
STYLE = "\ufe0f"  # variation selector: draw the sign as an emoji
TURNS, WINDOW = 5, 60.0  # reactions of one member that are looked at, in so many seconds
REMEMBERED = 4096  # members


class Turns:
    """Counts each member's recent reactions; the members seen longest ago are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: OrderedDict[int, deque[float]] = OrderedDict()

    def take(self, user: int) -> bool:
        """Return whether the member has a turn left, and count it."""
        now, taken = self._clock(), self._taken.setdefault(user, deque(maxlen=TURNS))
        self._taken.move_to_end(user)
        if len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)
        if len(taken) == TURNS and taken[0] > now - WINDOW:
            return False
        taken.append(now)
        return True


class Reactions:
    """Handles every added reaction, which the client passes on."""

    def __init__(self, client: DarkroomClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._turns = client, Turns(clock)
        self._closed: OrderedDict[int, None] = OrderedDict()  # members whose direct messages are closed

    async def added(self, payload: discord.RawReactionActionEvent) -> None:
        """Do what the reaction means, if it means something and the member may."""
        meaning = None if payload.emoji.id else MEANINGS.get(payload.emoji.name.rstrip(STYLE))
        if meaning is None or not self._concerns(payload) or not self._turns.take(payload.user_id):
            return
        try:
            job = await self._client.desk.deliveries.job_at(str(payload.message_id))
            member = None if job is None else self._member(payload)
            if job is not None and member is not None:
                await self._obey(meaning, job, member, payload)
        except Refused as refused:
            log.info("a reaction of %s was refused: %s", payload.user_id, refused.sentence)
        except Exception:
            log.exception("a reaction to message %s failed", payload.message_id)

    def _concerns(self, payload: discord.RawReactionActionEvent) -> bool:
        """Return whether a person reacted, as far as one can tell to a message of ours."""
        me = self._client.user
        by_bot = payload.member is not None and payload.member.bot
        if me is None or by_bot or payload.user_id == me.id:
            return False
        return payload.message_author_id in (None, me.id)

    def _member(self, payload: discord.RawReactionActionEvent) -> Member | None:
        """Return the member who reacted, with their permissions there; None while their server is not cached."""
        user, house = f"discord:{payload.user_id}", payload.user_id in self._client.keepers
        if payload.guild_id is None:
            known = self._client.get_user(payload.user_id)
            return Member(
                user, known.display_name if known else "Somebody", f"discord:dm:{payload.user_id}", house=house
            )
        who = payload.member
        if who is None:
            return None
        channel = who.guild.get_channel_or_thread(payload.channel_id)
        may = permissions(who)
        return Member(
            user, who.display_name, f"discord:{payload.guild_id}", moderator=may.manage_messages,
            admin=may.manage_guild, owner=who.guild.owner_id == who.id, house=house,
            roles=tuple(str(role.id) for role in who.roles),
            channel=str(getattr(channel, "parent_id", None) or payload.channel_id),
            age_restricted=bool(channel is not None and channel.is_nsfw()),
        )  # fmt: skip

    async def _obey(
        self, meaning: Meaning, job: str, member: Member, payload: discord.RawReactionActionEvent
    ) -> None:  # fmt: skip
        studio, direct = self._client.studio, payload.guild_id is None
        view = await studio.view(job)
        if meaning == "envelope":
            await self._permit("envelope", member, view, direct=direct)
            await self._send(view, payload.user_id)
        elif over(view.state):
            await self._permit("delete", member, view, direct=direct)
            await delete(self._client, job, member)
        else:
            await studio.cancel(job, member)

    async def _permit(self, action: Action, member: Member, view: View, *, direct: bool) -> None:
        if reason := forbidden(action, member, subject_of(view), direct=direct):
            raise Refused(reason, 403)
        await self._client.desk.administration.allowed(member, action)

    async def _send(self, view: View, user: int) -> None:
        try:
            await send(self._client, view, user)
        except discord.Forbidden as error:
            if user not in self._closed:
                log.info("pictures could not be sent to %s: %s", user, error)
            self._closed[user] = None
            if len(self._closed) > REMEMBERED:
                self._closed.popitem(last=False)
