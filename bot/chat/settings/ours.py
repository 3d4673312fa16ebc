"""Checks that channels in rules belong to the rules' own server: else its admins could post in another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bot.refused import Refused
from bot.sentences import shortened

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.rules.rule import Value

REPORTS = "reports"


def check_reports(interaction: Interaction, channels: Iterable[Value]) -> None:
    """Raise `Refused` (422) for what is no channel or thread that the bot sees on this server."""
    for one in map(str, channels):
        known = interaction.guild is not None and one.isdecimal() and interaction.guild.get_channel_or_thread(int(one))
        if not known:
            raise Refused(
                f"Reports go to a channel of this server, and I see none with the id {shortened(one, 30)} here."
            )
