"""Presses that make a job: a double click uses the same key and makes one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bot.discord.responses import respond_with_jobs

if TYPE_CHECKING:
    import discord

    from bot.discord.client import DarkroomClient
    from bot.domain.dto import AcceptedJob, Destination, Member

    PressSubmitter = Callable[[Member, Destination, str], Awaitable[AcceptedJob | list[AcceptedJob]]]


async def submit_once(interaction: discord.Interaction[DarkroomClient], custom_id: str, make: PressSubmitter) -> None:
    """Respond with the jobs that `make` submits to the job service. `custom_id`: the id of the pressed component."""
    keys = interaction.client.idempotency_keys
    user_id = str(interaction.user.id)
    accepted_jobs: list[AcceptedJob] = []
    key, is_first = keys.key_for(custom_id, user_id, str(interaction.id))

    async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
        result = await make(member, destination, key)
        accepted_jobs.extend(result if isinstance(result, list) else [result])
        return accepted_jobs

    try:
        await respond_with_jobs(interaction, submit, is_repeat=not is_first)
    finally:
        if not accepted_jobs:
            keys.forget(custom_id, user_id)
