"""The settings forms: change a value, add a rule, edit words, close the server. Submitting one is the confirmation.

Discord's components only; the input comes back as a `CardPress`. An empty field removes the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import discord
from discord import ui

from bot.discord.settings import texts, ui_parts
from bot.discord.settings.ui_parts import component_id
from bot.domain.texts import shorten
from bot.policy.rules.catalogue import SETTINGS, Setting
from bot.policy.rules.rule import ALL, RuleValue, Scope
from bot.policy.rules.value_parser import NO_WORDS, YES_WORDS, format_setting_value

# Discord's limits: a form's title, the text at a field, what a field holds
TITLE_LENGTH = 45
LABEL_LENGTH = 100
VALUE_LENGTH = 4000
EMPTY_HINT = "Leave it empty to remove the rule."


def build_change_form(setting: Setting, value: RuleValue | None) -> ui.Modal:
    """Return the form for a new value, for everyone or for one channel, role or member."""
    form = _new_form(texts.setting_title(setting.name), "save", setting.name)
    form.add_item(ui.TextDisplay(_about_sentence(setting)))
    form.add_item(ui.Label(text="New value", description=_value_hint(setting), component=_value_field(setting, value)))
    if "channel" in setting.scopes:
        form.add_item(ui.Label(text="Only in one channel", component=_channel_select(required=False)))
    if "user" in setting.scopes:
        form.add_item(ui.Label(text="Only for one role or member", component=_subject_select()))
    return form


def build_rule_form(scope: Scope, subject: str, setting: Setting, value: RuleValue | None) -> ui.Modal:
    """Return the form for a new value for the subject of one rule."""
    form = _new_form(texts.setting_title(setting.name), "save", setting.name, scope, subject.replace(":", "."))
    form.add_item(ui.TextDisplay(f"{_about_sentence(setting)}\n-# For {texts.subject_mention(scope, subject)}."))
    form.add_item(ui.Label(text="New value", description=_value_hint(setting), component=_value_field(setting, value)))
    return form


def build_add_form(scope: Scope) -> ui.Modal:
    """Return the form for a rule for a channel, a role or a member that the admin picks."""
    form = _new_form("Add a rule", "save")
    picker = (
        _channel_select(required=True) if scope == "channel" else _subject_select(required=True, roles=scope == "role")
    )
    form.add_item(ui.Label(text={"channel": "Channel", "role": "Role"}.get(scope, "Member"), component=picker))
    options = [
        discord.SelectOption(
            value=name, label=texts.setting_title(name), description=shorten(setting.description, LABEL_LENGTH)
        )
        for name, setting in SETTINGS.items()
        if scope in setting.scopes
    ][: ui_parts.MAX_OPTIONS]
    form.add_item(ui.Label(text="Setting", component=ui.Select(custom_id="setting", options=options)))
    field = ui.TextInput[Any](
        custom_id="value", max_length=VALUE_LENGTH, placeholder="5, 30 min, 512x512, on, embedded …"
    )
    form.add_item(ui.Label(text="Value", component=field))
    return form


def build_words_form(word_list: Sequence[str], patterns: Sequence[str], lists_hash: str) -> ui.Modal:
    """Return the form with all words and all patterns of this server, one a line.

    `lists_hash`: the hash of the lists when the form was opened.
    """
    form = _new_form("Refused words and patterns", "reword", lists_hash)
    form.add_item(
        ui.TextDisplay("A prompt that has one of these is refused. One a line; look-alike letters are recognised.")
    )
    for name, hint, lines in (
        ("words", "Whole words or phrases, one a line", word_list),
        ("patterns", "RE2 patterns, one a line; for those who know them", patterns),
    ):
        text = "\n".join(lines)
        field = ui.TextInput[Any](
            custom_id=name,
            style=discord.TextStyle.paragraph,
            required=False,
            max_length=VALUE_LENGTH,
            default=text or None,
        )
        form.add_item(ui.Label(text=name.capitalize(), description=hint, component=field))
    return form


def build_close_form(reason: str) -> ui.Modal:
    """Return the kill switch's form: it says what closing stops, and asks for the reason that members read."""
    form = _new_form("Close this server", "closed")
    warning = "**All running and waiting jobs** of this server are cancelled now; what they did not use is refunded."
    form.add_item(ui.TextDisplay(f"{warning} Nothing more is made here until `/settings open`."))
    field = ui.TextInput[Any](
        custom_id="reason", default=shorten(reason, 300) or None, max_length=300, placeholder="Back on Monday"
    )
    form.add_item(ui.Label(text="Reason", description="Members read it when they are refused", component=field))
    return form


def _new_form(title: str, verb: str, *id_parts: object) -> ui.Modal:
    return ui.Modal(title=title[:TITLE_LENGTH], custom_id=component_id(verb, *id_parts))


def _about_sentence(setting: Setting) -> str:
    return f"{setting.description[:1].upper()}{setting.description[1:]}."


def _value_hint(setting: Setting) -> str:
    kinds = {
        "number": f"A whole number from {setting.minimum} to {setting.maximum}. {EMPTY_HINT}",
        "cost": f"Such as 30 min, 2 h or no limit. {EMPTY_HINT}",
        "seconds": f"Such as 90 s or 2 min. {EMPTY_HINT}",
        "size": f"Such as 512x512 or 1024. {EMPTY_HINT}",
        "names": f"Names with commas between them, all or none. {EMPTY_HINT}",
        "channel": f"A channel. {EMPTY_HINT}",
    }
    return kinds.get(setting.kind, "Choose nothing to remove the rule.")[:LABEL_LENGTH]


def _value_field(setting: Setting, value: RuleValue | None) -> ui.Item[Any]:
    """Return a select if the setting has choices, else a line of text."""
    if setting.kind == "channel":
        return _channel_select(required=False, field="value")
    if setting.kind in ("choice", "choices", "switch"):
        choices = (YES_WORDS[0], NO_WORDS[0]) if setting.kind == "switch" else setting.choices
        selected = choices if value == ALL else _chosen_values(setting, value)
        options = [discord.SelectOption(label=choice, value=choice, default=choice in selected) for choice in choices]
        max_values = len(choices) if setting.kind == "choices" else 1
        return ui.Select(custom_id="value", options=options, required=False, min_values=0, max_values=max_values)
    text = None if value is None else format_setting_value(setting, value)[:VALUE_LENGTH]
    return ui.TextInput(custom_id="value", required=False, default=text, max_length=VALUE_LENGTH)


def _chosen_values(setting: Setting, value: RuleValue | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (format_setting_value(setting, value),)


def _channel_select(*, required: bool, field: str = "channel") -> ui.ChannelSelect[Any]:
    kinds = [discord.ChannelType.text, discord.ChannelType.forum, discord.ChannelType.news]
    return ui.ChannelSelect(
        custom_id=field, channel_types=kinds, required=required, min_values=int(required), max_values=1
    )


def _subject_select(*, required: bool = False, roles: bool | None = None) -> ui.Item[Any]:
    select_class = {None: ui.MentionableSelect, True: ui.RoleSelect, False: ui.UserSelect}[roles]
    return select_class(custom_id="who", required=required, min_values=int(required), max_values=1)
