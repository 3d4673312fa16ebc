"""The settings forms: change a value, add a rule, edit words, close the server. Submitting one is the confirmation.

Discord's components only; the input comes back as a `Press`. An empty field removes the rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import discord
from discord import ui

from bot.chat.settings import parts, wording
from bot.chat.settings.parts import named
from bot.rules.catalogue import SETTINGS, Setting
from bot.rules.reading import NO, YES, written
from bot.rules.rule import ALL, Scope, Value
from bot.sentences import shortened

TITLE, FIELD, LONG = 45, 100, 4000  # Discord's limits: a form's title, the text at a field, what a field holds
EMPTY = "Leave it empty to remove the rule."


def change(setting: Setting, value: Value | None) -> ui.Modal:
    """Return the form for a new value, for everyone or for one channel, role or member."""
    form = _form(wording.title(setting.name), "save", setting.name)
    form.add_item(ui.TextDisplay(_about(setting)))
    form.add_item(ui.Label(text="New value", description=_hint(setting), component=_field(setting, value)))
    if "channel" in setting.scopes:
        form.add_item(ui.Label(text="Only in one channel", component=_channel(required=False)))
    if "user" in setting.scopes:
        form.add_item(ui.Label(text="Only for one role or member", component=_who()))
    return form


def rule(scope: Scope, subject: str, setting: Setting, value: Value | None) -> ui.Modal:
    """Return the form for a new value for the subject of one rule."""
    form = _form(wording.title(setting.name), "save", setting.name, scope, subject.replace(":", "."))
    form.add_item(ui.TextDisplay(f"{_about(setting)}\n-# For {wording.whom(scope, subject)}."))
    form.add_item(ui.Label(text="New value", description=_hint(setting), component=_field(setting, value)))
    return form


def add(scope: Scope) -> ui.Modal:
    """Return the form for a rule for a channel, a role or a member that the admin picks."""
    form = _form("Add a rule", "save")
    picker = _channel(required=True) if scope == "channel" else _who(required=True, roles=scope == "role")
    form.add_item(ui.Label(text={"channel": "Channel", "role": "Role"}.get(scope, "Member"), component=picker))
    options = [
        discord.SelectOption(value=name, label=wording.title(name), description=shortened(one.about, FIELD))
        for name, one in SETTINGS.items()
        if scope in one.scopes
    ][: parts.OPTIONS]
    form.add_item(ui.Label(text="Setting", component=ui.Select(custom_id="setting", options=options)))
    field = ui.TextInput(custom_id="value", max_length=LONG, placeholder="5, 30 min, 512x512, on, embedded …")
    form.add_item(ui.Label(text="Value", component=field))
    return form


def words(now: Sequence[str], patterns: Sequence[str], stamp: str) -> ui.Modal:
    """Return the form with all words and all patterns of this server, one a line.

    `stamp`: the hash of the lists that it was opened with.
    """
    form = _form("Refused words and patterns", "reword", stamp)
    form.add_item(
        ui.TextDisplay("A prompt that has one of these is refused. One a line; look-alike letters are recognised.")
    )
    for name, hint, lines in (
        ("words", "Whole words or phrases, one a line", now),
        ("patterns", "RE2 patterns, one a line; for those who know them", patterns),
    ):
        shown = "\n".join(lines)
        field = ui.TextInput(
            custom_id=name, style=discord.TextStyle.paragraph, required=False, max_length=LONG, default=shown or None
        )
        form.add_item(ui.Label(text=name.capitalize(), description=hint, component=field))
    return form


def close(reason: str) -> ui.Modal:
    """Return the kill switch's form: it says what closing stops, and asks for the reason that members read."""
    form = _form("Close this server", "closed")
    stops = "**All running and waiting jobs** of this server are cancelled now; what they did not use is refunded."
    form.add_item(ui.TextDisplay(f"{stops} Nothing more is made here until `/settings open`."))
    field = ui.TextInput(
        custom_id="reason", default=shortened(reason, 300) or None, max_length=300, placeholder="Back on Monday"
    )
    form.add_item(ui.Label(text="Reason", description="Members read it when they are refused", component=field))
    return form


def _form(title: str, verb: str, *of: object) -> ui.Modal:
    return ui.Modal(title=title[:TITLE], custom_id=named(verb, *of))


def _about(setting: Setting) -> str:
    return f"{setting.about[:1].upper()}{setting.about[1:]}."


def _hint(setting: Setting) -> str:
    kinds = {
        "number": f"A whole number from {setting.least} to {setting.most}. {EMPTY}",
        "cost": f"Such as 30 min, 2 h or no limit. {EMPTY}",
        "seconds": f"Such as 90 s or 2 min. {EMPTY}",
        "size": f"Such as 512x512 or 1024. {EMPTY}",
        "names": f"Names with commas between them, all or none. {EMPTY}",
        "channel": f"A channel. {EMPTY}",
    }
    return kinds.get(setting.kind, "Choose nothing to remove the rule.")[:FIELD]


def _field(setting: Setting, value: Value | None) -> ui.Item:
    """Return a select if the setting has choices, else a line of text."""
    if setting.kind == "channel":
        return _channel(required=False, field="value")
    if setting.kind in ("choice", "choices", "switch"):
        offered = (YES[0], NO[0]) if setting.kind == "switch" else setting.choices
        chosen = offered if value == ALL else _listed(setting, value)
        options = [discord.SelectOption(label=one, value=one, default=one in chosen) for one in offered]
        most = len(offered) if setting.kind == "choices" else 1
        return ui.Select(custom_id="value", options=options, required=False, min_values=0, max_values=most)
    shown = None if value is None else written(setting, value)[:LONG]
    return ui.TextInput(custom_id="value", required=False, default=shown, max_length=LONG)


def _listed(setting: Setting, value: Value | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (written(setting, value),)


def _channel(*, required: bool, field: str = "channel") -> ui.ChannelSelect:
    kinds = [discord.ChannelType.text, discord.ChannelType.forum, discord.ChannelType.news]
    return ui.ChannelSelect(
        custom_id=field, channel_types=kinds, required=required, min_values=int(required), max_values=1
    )


def _who(*, required: bool = False, roles: bool | None = None) -> ui.Item:
    kind = {None: ui.MentionableSelect, True: ui.RoleSelect, False: ui.UserSelect}[roles]
    return kind(custom_id="who", required=required, min_values=int(required), max_values=1)
