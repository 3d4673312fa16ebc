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

__all__ = ["COMMANDS", "VERBS", "pressed"]

COMMANDS = (settings, moderation)
VERBS: Mapping[str, presses.Verb] = MappingProxyType(
    {
        "show": looking.show,
        "page": looking.page,
        "explain": looking.explain_chosen,
        "log": looking.log,
        "change": changing.ask,
        "add": changing.ask_new,
        "save": changing.save,
        "undo": changing.undo_pressed,
        "back": changing.undo_listed,
        "presets": changing.offer_presets,
        "preset": changing.preset_pressed,
        "apply": changing.apply,
        "dismiss": changing.dismiss,
        "export": exchange.export,
        "bring": exchange.brought,
        "leave": exchange.left,
        "close": doors.close_pressed,
        "closed": doors.close,
        "open": doors.reopen,
        "incidents": incidents.turned,
        "shut": incidents.close,
        "words": moderating.edit_words,
        "reword": moderating.reword,
    }
)


async def pressed(interaction: Interaction) -> None:
    """Handle a press on one of these cards; ignore other interactions."""
    await presses.dispatch(interaction, VERBS)
