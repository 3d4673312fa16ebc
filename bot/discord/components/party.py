"""Presses in a party: say something, vote for or against a phrase. The caller has checked the permission."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from bot.discord.components.forms import FormSubmission, create_form, form_id, open_form, text_field
from bot.discord.responses import member_of, send_ephemeral
from bot.services.parties.party_service import MAX_SAID

if TYPE_CHECKING:
    import discord
    from discord import ui

    from bot.discord.cards.button_layout import Button, ButtonKind
    from bot.discord.client import DarkroomClient
    from bot.domain.dto import JobView
    from bot.policy.permissions import Action

    Interaction = discord.Interaction[DarkroomClient]

PARTY_ACTIONS: Mapping[ButtonKind, Action] = MappingProxyType(
    {"speak": "party", "voteup": "party", "votedown": "party"}
)


async def run_party_press(interaction: Interaction, button: Button, view: JobView) -> None:
    """Open the form, or count the vote: the next edit of the picture's message shows it. Raises `UserError`."""
    if button.kind == "speak":
        await open_form(interaction, build_phrase_form(view.id))
        return
    value = 1 if button.kind == "voteup" else -1
    await interaction.client.services.parties.vote(view.id, button.index, value, member_of(interaction))
    await interaction.response.defer()


def build_phrase_form(job: str) -> ui.Modal:
    """Return the form with its one question."""
    modal = create_form("Say what it should show", form_id("speak", job))
    help_text = "A few words; they replace what you said before"
    modal.add_item(text_field("words", "Words", help_text, max_length=MAX_SAID, single_line=True))
    return modal


async def submit_phrase(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form. Raises `UserError`."""
    words = submission.fields.get("words", "")
    await send_ephemeral(
        interaction, await interaction.client.services.parties.say(view.id, words, member_of(interaction))
    )
