"""`/settings` and `/moderation`: admins set limits and rules in Discord, by commands and by the cards that they open.

`commands` and `moderation_commands` are the commands; `press_dispatch` routes a button, a select or a form to its entry
in `HANDLERS`. The work is in `rule_pages`, `rule_changes`, `rule_file`, `kill_switch`, `moderation_changes` and
`incidents`; `cards`, `forms`, `ui_parts` and `texts` say how it looks. Cards keep no state: every card works after any
restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bot.discord.settings import (
    incidents,
    kill_switch,
    moderation_changes,
    responses,
    rule_changes,
    rule_file,
    rule_pages,
)
from bot.discord.settings.commands import settings
from bot.discord.settings.moderation_commands import moderation

__all__ = ["COMMANDS", "HANDLERS"]

COMMANDS = (settings, moderation)
HANDLERS: Mapping[str, responses.PressHandler] = MappingProxyType(
    {
        "show": rule_pages.show_overview,
        "page": rule_pages.show_exceptions_page,
        "explain": rule_pages.explain_picked_member,
        "log": rule_pages.show_history,
        "change": rule_changes.open_change_form,
        "add": rule_changes.open_add_form,
        "save": rule_changes.save_form,
        "undo": rule_changes.on_undo_press,
        "back": rule_changes.undo_in_history,
        "presets": rule_changes.show_presets,
        "preset": rule_changes.on_preset_press,
        "apply": rule_changes.apply_preset,
        "dismiss": rule_changes.dismiss,
        "export": rule_file.export_rules,
        "bring": rule_file.confirm_import,
        "leave": rule_file.cancel_import,
        "close": kill_switch.on_close_press,
        "closed": kill_switch.close_guild,
        "open": kill_switch.reopen,
        "incidents": incidents.show_page,
        "shut": incidents.close_incident,
        "words": moderation_changes.edit_words,
        "reword": moderation_changes.save_words,
    }
)
