"""Presses that act on one picture: zoom out, pan, edit, branch, make square, compare.

The caller has checked the permission. Knows the job service; knows nothing of which buttons a card shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from bot.discord.components import branches, comparison, edit_form
from bot.discord.components.forms import open_form
from bot.discord.components.idempotency import submit_once

if TYPE_CHECKING:
    import discord

    from bot.discord.cards.button_layout import Button, ButtonKind
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member
    from bot.policy.permissions import Action

    Interaction = discord.Interaction[DarkroomClient]

PICTURE_ACTIONS: Mapping[ButtonKind, Action] = MappingProxyType(
    {
        "zoomsome": "zoom",
        "zoomtwice": "zoom",
        "panleft": "pan",
        "panright": "pan",
        "panup": "pan",
        "pandown": "pan",
        "edit": "edit",
        "branch": "branch",
        "square": "zoom",
        "compare": "details",
    }
)
ZOOM_FACTORS: Mapping[str, float] = MappingProxyType({"zoomsome": 1.5, "zoomtwice": 2.0})
PAN_DIRECTIONS: Mapping[str, Literal["left", "right", "up", "down"]] = MappingProxyType(
    {"panleft": "left", "panright": "right", "panup": "up", "pandown": "down"}
)


async def run_picture_action(interaction: Interaction, button: Button, view: JobView) -> None:
    """Submit the job that the button means, or ask what else it needs. Raises `UserError`."""
    index = button.index or 0
    if button.kind == "branch":
        await branches.open_keyframe_menu(interaction, view, index)
    elif button.kind == "edit":
        await open_form(interaction, edit_form.build_edit_form(view, index))
    elif button.kind == "compare":
        await comparison.send_comparison(interaction, view, index)
    else:
        await submit_once(
            interaction,
            button.custom_id,
            lambda member, destination, key: _submit(interaction, button, index, member, destination, key),
        )


async def _submit(
    interaction: Interaction, button: Button, index: int, member: Member, destination: Destination, key: str
) -> AcceptedJob:
    services = interaction.client.services
    if button.kind == "square":
        return await services.edits.zoom_to_square(button.job, index, member, destination, key=key)
    if factor := ZOOM_FACTORS.get(button.kind):
        return await services.edits.zoom(button.job, index, factor, member, destination, key=key)
    return await services.edits.pan(button.job, index, PAN_DIRECTIONS[button.kind], member, destination, key=key)
