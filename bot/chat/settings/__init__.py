"""`/settings` and `/moderation`: admins set limits and rules in Discord, by commands and by the cards that they open.

`group` and `moderation` are the commands; `presses` routes a button, a select or a form to its entry in `VERBS`. The
work is in `looking`, `changing`, `exchange`, `doors`, `moderating` and `incidents`; `cards`, `forms`, `parts` and
`wording` say how it looks. Nothing is kept between two presses: every card works after any restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from bot.chat.settings import changing, doors, exchange, incidents, looking, moderating, presses
from bot.chat.settings.group import settings
from bot.chat.settings.moderation import moderation

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction

__all__ = ["COMMANDS", "HANDLERS", "handle_press"]

COMMANDS = (settings, moderation)
HANDLERS: Mapping[str, presses.PressHandler] = MappingProxyType(
    {
        "show": looking.show_overview,
        "page": looking.show_exceptions_page,
        "explain": looking.explain_picked_member,
        "log": looking.show_history,
        "change": changing.open_change_form,
        "add": changing.open_add_form,
        "save": changing.save_form,
        "undo": changing.on_undo_press,
        "back": changing.undo_in_history,
        "presets": changing.show_presets,
        "preset": changing.on_preset_press,
        "apply": changing.apply_preset,
        "dismiss": changing.dismiss,
        "export": exchange.export_rules,
        "bring": exchange.confirm_import,
        "leave": exchange.cancel_import,
        "close": doors.on_close_press,
        "closed": doors.close_guild,
        "open": doors.reopen,
        "incidents": incidents.show_page,
        "shut": incidents.close_incident,
        "words": moderating.edit_words,
        "reword": moderating.save_words,
    }
)


async def handle_press(interaction: Interaction) -> None:
    """Handle a press on one of these cards; ignore other interactions."""
    await presses.dispatch_press(interaction, HANDLERS)
