"""Checks that channels in rules belong to the rules' own server: else its admins could post in another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bot.refused import UserError
from bot.sentences import shorten

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.rules.rule import RuleValue

REPORTS = "reports"


def check_report_channels(interaction: Interaction, channels: Iterable[RuleValue]) -> None:
    """Raise `Refused` (422) for what is no channel or thread that the bot sees on this server."""
    for channel in map(str, channels):
        is_known = (
            interaction.guild is not None
            and channel.isdecimal()
            and interaction.guild.get_channel_or_thread(int(channel))
        )
        if not is_known:
            raise UserError(
                f"Reports go to a channel of this server, and I see none with the id {shorten(channel, 30)} here."
            )
