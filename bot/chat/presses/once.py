"""Presses that make a job: a double click uses the same key and makes one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bot.chat.answer import answer

if TYPE_CHECKING:
    import discord

    from bot.chat.client import DarkroomClient
    from bot.views import Member, Place, Ticket

    Make = Callable[[Member, Place, str], Awaitable[Ticket | list[Ticket]]]


async def once(interaction: discord.Interaction[DarkroomClient], pressed: str, make: Make) -> None:
    """Respond with the jobs that `make` submits to the studio. `pressed`: the id of what was pressed."""
    presses, user = interaction.client.presses, str(interaction.user.id)
    made: list[Ticket] = []
    key, first = presses.key(pressed, user, str(interaction.id))

    async def ask(member: Member, place: Place) -> list[Ticket]:
        found = await make(member, place, key)
        made.extend(found if isinstance(found, list) else [found])
        return made

    try:
        await answer(interaction, ask, again=not first)
    finally:
        if not made:
            presses.forget(pressed, user)
