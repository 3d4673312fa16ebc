"""The Discord client as commands, components and delivery see it. It imports none of them: `start.py` brings them.

Idempotency keys of presses: a double click makes one job.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import discord
from cachetools import TTLCache
from discord import ui

from bot.policy.limits import TokenBuckets

if TYPE_CHECKING:
    from bot.services import Services

VOICE_WARNINGS = ("warn_nacl", "warn_dave")  # discord.py warns once that voice needs more packages; we use no voice

Interaction: TypeAlias = "discord.Interaction[DarkroomClient]"


class ButtonCard(Protocol):
    """A message: its text, its rows of buttons, and the picture's alt text."""

    @property
    def content(self) -> str: ...
    @property
    def rows(self) -> tuple[Any, ...]: ...
    @property
    def alt(self) -> str: ...


class DarkroomClient(discord.AutoShardedClient, ABC):
    """The Discord client of one bot. It needs no privileged intents: interactions and reactions carry all data."""

    def __init__(self, services: Services, **options: Any) -> None:
        for name in VOICE_WARNINGS:
            setattr(discord.VoiceClient, name, False)
        super().__init__(
            intents=discord.Intents(guilds=True, guild_reactions=True, dm_reactions=True),
            allowed_mentions=discord.AllowedMentions.none(),
            member_cache_flags=discord.MemberCacheFlags.none(),
            max_messages=None,
            max_ratelimit_timeout=30.0,
            **options,
        )
        self.services = services
        self.idempotency_keys = IdempotencyKeys()
        self.token_buckets = TokenBuckets()  # how often each member may ask
        self.operator_ids: frozenset[int] = frozenset()  # the operators' user ids, from the Discord application
        self.login_done = asyncio.Event()  # logged in: messages can be sent
        self.pending_tokens: set[str] = set()  # tokens of the interactions whose first response is being sent

    @abstractmethod
    def build_view(self, card: ButtonCard) -> ui.View | None:
        """Return the card's buttons; None for none. Must be called on the event loop."""

    @abstractmethod
    def mention_command(self, name: str) -> str:
        """Return a command's name, clickable if its id is known: "queue", "settings show"."""


DOUBLE_CLICK_SECONDS = 10.0  # seconds in which a second press of the same button by the same member is a double click


class IdempotencyKeys:
    """Gives a double click one idempotency key, so that it makes one job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._recent: TTLCache[tuple[str, str], str] = TTLCache(math.inf, DOUBLE_CLICK_SECONDS, timer=clock)

    def key_for(self, custom_id: str, member: str, interaction: str) -> tuple[str, bool]:
        """Return the idempotency key, and whether this is the first press."""
        if earlier_key := self._recent.get((custom_id, member)):
            return earlier_key, False
        key = self._recent[custom_id, member] = f"press:{interaction}"
        return key, True

    def forget(self, custom_id: str, member: str) -> None:
        """Forget a press that made no job: the next one is another attempt, with its own card."""
        self._recent.pop((custom_id, member), None)
