"""Cards and forms for admins: the overview, the exceptions for channels, roles and members, the history.

Only discord's components. Lines are short, for a phone; common actions are one tap away. Submitting a form is the
confirmation, and an empty field removes the rule.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import discord
from discord import ui

from bot.discord.settings import texts
from bot.discord.settings.responses import (
    LABEL_LENGTH,
    LAYOUT_CHARACTERS,
    MAX_OPTIONS,
    Style,
    component_id,
    cut_page,
    make_button,
    make_layout,
    make_pager,
    make_select,
    make_text,
)
from bot.domain.texts import escape_discord, shorten
from bot.policy.rules.catalogue import SETTINGS, EffectiveRules, Setting
from bot.policy.rules.rule import ALL, EVERYWHERE, Rule, RuleChange, RuleValue, Scope
from bot.policy.rules.value_parser import NO_WORDS, YES_WORDS, format_setting_value

EXCEPTION_TITLES: dict[Scope, str] = {"channel": "Channels", "role": "Roles", "user": "Members"}
RULES_PER_PAGE = 15  # rules on one page of exceptions
CHANGES_PER_PAGE = 5  # on one page of the history
RED = 0xED4245
GREEN = 0x57F287
BLUE = 0x5865F2
LEGEND = "-# **Bold** is set on this server, 🔒 by this bot's operator; the rest is the bot's default."
PRECEDENCE = "-# The most specific rule holds: member, then role, channel, everyone."
# Discord's limits: a form's title, what a field holds
TITLE_LENGTH = 45
VALUE_LENGTH = 4000
EMPTY_HINT = "Leave it empty to remove the rule."
Notice = Sequence[ui.Item[Any]]  # what has just happened, for the top of a card


def build_overview(
    effective_rules: EffectiveRules, rules: Sequence[Rule], notice: Notice = (), model_costs: Sequence[str] = ()
) -> ui.LayoutView:
    """Return the card of what holds for everyone, with the number of exceptions and every possible change.

    `model_costs`: lines on what a picture of each model costs.
    """
    shared_titles = {name: texts.shared_limit_title(name) for name in texts.SHARED_LIMITS}
    groups = (
        ("Each member", texts.MEMBER_LIMITS),
        ("All together", texts.SHARED_LIMITS),
        ("This server", (*texts.SWITCHES, "words", "patterns")),
    )
    items: list[ui.Item[Any]] = [*notice, make_text("## Settings of this server")]
    closed = effective_rules.closed
    if closed:
        open_button = make_button("Open", "open", style=Style.success)
        items.append(ui.Section(f"🔴 **Closed**: {escape_discord(closed, 300)}", accessory=open_button))
    for heading, names in groups:
        lines = (_setting_line(name, effective_rules, shared_titles.get(name)) for name in names)
        items.append(make_text(f"### {heading}", *lines))
    if model_costs:
        items.append(make_text("### Models", *model_costs))
    member_options = _select_options(texts.MEMBER_LIMITS, effective_rules)
    server_options = _select_options((*texts.SHARED_LIMITS, *texts.SWITCHES), effective_rules)
    counts = {scope: len(_rules_of_scope(scope, rules)) for scope in EXCEPTION_TITLES}
    members = ui.UserSelect[Any](placeholder="What may one member do, and why? …", custom_id=component_id("explain"))
    items += [
        make_text(LEGEND, PRECEDENCE),
        make_select("Change a limit of each member …", member_options, "change"),
        make_select("Change this server …", server_options, "change", "server"),
        ui.ActionRow(members),
        ui.ActionRow(
            *(make_button(f"{title}: {counts[scope]}", "page", scope, 0) for scope, title in EXCEPTION_TITLES.items()),
            make_button("Incidents", "incidents", "waiting", 0),
        ),
        ui.ActionRow(
            make_button("History", "log", 0),
            make_button("Presets", "presets"),
            make_button("Words", "words"),
            make_button("Export", "export"),
            *([] if closed else [make_button("Close", "close", style=Style.danger)]),
        ),
    ]
    return make_layout(*items, colour=RED if closed else BLUE)


def build_exceptions(scope: Scope, rules: Sequence[Rule], page: int, notice: Notice = ()) -> ui.LayoutView:
    """Return the rules for single channels, roles or members, numbered, since a select can show no mentions."""
    page_rules, page, pages = cut_page(_rules_of_scope(scope, rules), page, RULES_PER_PAGE)
    numbered_rules = list(enumerate(page_rules, page * RULES_PER_PAGE + 1))
    lines = [
        f"`{number}` {texts.subject_mention(scope, rule.subject)} · {texts.setting_title(rule.setting)}: "
        f"**{texts.format_for_card(rule.setting, rule.value)}**"
        for number, rule in numbered_rules
    ]
    options = [
        (
            f"{rule.scope}/{rule.subject}/{rule.setting}",  # a subject may have colons in it
            f"{number} · {texts.setting_title(rule.setting)}",
            texts.format_for_field(rule.setting, rule.value),
        )
        for number, rule in numbered_rules
    ]
    return make_layout(
        *notice,
        make_text(f"## {EXCEPTION_TITLES[scope]} with rules of their own"),
        make_text(*(lines or ["None."])),
        *([make_select("Change or remove one …", options, "change", "rule")] if options else []),
        *make_pager("page", scope, page=page, pages=pages),
        ui.ActionRow(make_button("Back", "show"), make_button("Add a rule", "add", scope)),
        colour=BLUE,
    )


def build_explanation(header: str, sections: Sequence[texts.Section], user: str) -> ui.LayoutView:
    """Return what holds for a member, group by group, and a select to set it for them."""
    options = [
        (f"user/discord:{user}/{name}", texts.setting_title(name), SETTINGS[name].description)
        for name in texts.MEMBER_LIMITS
    ]
    characters_left = LAYOUT_CHARACTERS - len(header)
    items: list[ui.Item[Any]] = [make_text(header)]
    for heading, lines in sections:
        fitting_lines = texts.fit_lines([f"### {heading}", *lines] if heading else lines, characters_left)
        characters_left -= len("\n".join(fitting_lines))
        items += [ui.Separator(), make_text(*fitting_lines)]
    items.append(make_select("Set something for this member …", options, "change", "member"))
    return make_layout(*items, ui.ActionRow(make_button("All settings", "show")), colour=BLUE)


def build_history(
    changes: Sequence[RuleChange], page: int, undoable: Collection[int], notice: Notice = ()
) -> ui.LayoutView:
    """Return one page of changes, the newest first; the reader may undo those of the numbers `undoable`."""
    page_changes, page, pages = cut_page(changes, page, CHANGES_PER_PAGE)
    items: list[ui.Item[Any]] = [*notice, make_text("## What was changed here")]
    if not changes:
        items.append(make_text("Nothing yet."))
    for change in page_changes:
        disabled = change.undone_by is not None or change.number not in undoable
        undo_button = make_button("Undo", "back", change.number, page, disabled=disabled)
        items.append(ui.Section(texts.format_change(change), accessory=undo_button))
    items += make_pager("log", page=page, pages=pages)
    return make_layout(*items, ui.ActionRow(make_button("All settings", "show")), colour=BLUE)


def build_notice(line: str, undo_number: int | None = None) -> Notice:
    """Return what has just happened; `undo_number`: the number of the change that a button reverts."""
    if undo_number is None:
        return [make_text(line), ui.Separator()]
    return [ui.Section(line, accessory=make_button("Undo", "undo", undo_number)), ui.Separator()]


def build_question(lines: Sequence[str], confirm_button: ui.Button[Any]) -> ui.LayoutView:
    """Return a card that shows what would change, and asks."""
    fitting_lines = texts.fit_lines(lines, LAYOUT_CHARACTERS)
    buttons = ui.ActionRow(confirm_button, make_button("Cancel", "dismiss"))
    return make_layout(make_text(*fitting_lines), buttons, colour=BLUE)


def build_result(line: str, *, undo_number: int | None = None, success: bool = True) -> ui.LayoutView:
    """Return one sentence, with buttons to undo and to go back."""
    buttons = [make_button("All settings", "show")]
    if undo_number is not None:
        buttons.insert(0, make_button("Undo", "undo", undo_number))
    return make_layout(make_text(line), ui.ActionRow(*buttons), colour=GREEN if success else RED)


def _setting_line(name: str, effective_rules: EffectiveRules, title: str | None = None) -> str:
    value = effective_rules.get(name)
    rule = effective_rules.deciding_rules.get(name)
    if name.startswith("together_") and value is None:
        text = texts.NO_LIMIT
    elif name in ("words", "patterns") and not value:
        text = "none"
    elif name == "reports" and not value:
        text = "moderators' list only"
    else:
        text = texts.format_for_card(name, value)
    lock = " 🔒" if rule is not None and (rule.scope == "operator" or rule.guild == EVERYWHERE) else ""
    return f"{title or texts.setting_title(name)} · {f'**{text}**' if rule is not None else text}{lock}"


def _select_options(names: Sequence[str], effective_rules: EffectiveRules) -> list[tuple[str, str, str]]:
    """Return settings for a select, each with its present value."""
    options: list[tuple[str, str, str]] = []
    for name in names:
        value = effective_rules.get(name)
        no_value = texts.NO_LIMIT if name in texts.SHARED_LIMITS else "nothing"
        current = texts.format_for_field(name, value)[:40] if value not in (None, "") else no_value
        options.append((name, texts.setting_title(name), f"now {current}: {SETTINGS[name].description}"))
    return options


def _rules_of_scope(scope: Scope, rules: Sequence[Rule]) -> list[Rule]:
    scope_rules = (rule for rule in rules if rule.scope == scope and rule.guild != EVERYWHERE)
    return sorted(scope_rules, key=lambda rule: (rule.subject, list(SETTINGS).index(rule.setting)))


def build_change_form(setting: Setting, value: RuleValue | None) -> ui.Modal:
    """Return the form for a new value, for everyone or for one channel, role or member."""
    form = _new_form(texts.setting_title(setting.name), ui.TextDisplay(_about_sentence(setting)), "save", setting.name)
    _add_field(form, "New value", _value_field(setting, value), _value_hint(setting))
    if "channel" in setting.scopes:
        _add_field(form, "Only in one channel", _channel_select(required=False))
    if "user" in setting.scopes:
        _add_field(form, "Only for one role or member", _subject_select(ui.MentionableSelect, required=False))
    return form


def build_rule_form(scope: Scope, subject: str, setting: Setting, value: RuleValue | None) -> ui.Modal:
    """Return the form for a new value for the subject of one rule."""
    about = f"{_about_sentence(setting)}\n-# For {texts.subject_mention(scope, subject)}."
    title = texts.setting_title(setting.name)
    form = _new_form(title, ui.TextDisplay(about), "save", setting.name, scope, subject.replace(":", "."))
    _add_field(form, "New value", _value_field(setting, value), _value_hint(setting))
    return form


def build_add_form(scope: Scope) -> ui.Modal:
    """Return the form for a rule for a channel, a role or a member that the admin picks."""
    form = _new_form("Add a rule", None, "save")
    if scope == "channel":
        _add_field(form, "Channel", _channel_select(required=True))
    else:
        label, select = ("Role", ui.RoleSelect) if scope == "role" else ("Member", ui.UserSelect)
        _add_field(form, label, _subject_select(select, required=True))
    options = [
        discord.SelectOption(
            value=name, label=texts.setting_title(name), description=shorten(setting.description, LABEL_LENGTH)
        )
        for name, setting in SETTINGS.items()
        if scope in setting.scopes
    ][:MAX_OPTIONS]
    _add_field(form, "Setting", ui.Select(custom_id="setting", options=options))
    example = "5, 30 min, 512x512, on, embedded …"
    _add_field(form, "Value", ui.TextInput(custom_id="value", max_length=VALUE_LENGTH, placeholder=example))
    return form


def build_words_form(word_list: Sequence[str], patterns: Sequence[str], lists_hash: str) -> ui.Modal:
    """Return the form with all words and all patterns of this server, one a line.

    `lists_hash`: the hash of the lists when the form was opened.
    """
    about = "A prompt that has one of these is refused. One a line; look-alike letters are recognised."
    form = _new_form("Refused words and patterns", ui.TextDisplay(about), "reword", lists_hash)
    for name, hint, lines in (
        ("words", "Whole words or phrases, one a line", word_list),
        ("patterns", "RE2 patterns, one a line; for those who know them", patterns),
    ):
        style = discord.TextStyle.paragraph
        text = "\n".join(lines) or None
        field = ui.TextInput[Any](custom_id=name, style=style, required=False, max_length=VALUE_LENGTH, default=text)
        _add_field(form, name.capitalize(), field, hint)
    return form


def build_close_form(reason: str) -> ui.Modal:
    """Return the kill switch's form: it says what closing stops, and asks for the reason that members read."""
    warning = "**All running and waiting jobs** of this server are cancelled now; what they did not use is refunded."
    about = ui.TextDisplay[Any](f"{warning} Nothing more is made here until `/settings open`.")
    form = _new_form("Close this server", about, "closed")
    default = shorten(reason, 300) or None
    field = ui.TextInput[Any](custom_id="reason", default=default, max_length=300, placeholder="Back on Monday")
    _add_field(form, "Reason", field, "Members read it when they are refused")
    return form


def _new_form(title: str, about: ui.TextDisplay[Any] | None, verb: str, *id_parts: object) -> ui.Modal:
    form = ui.Modal(title=title[:TITLE_LENGTH], custom_id=component_id(verb, *id_parts))
    return form.add_item(about) if about else form


def _add_field(form: ui.Modal, label: str, component: ui.Item[Any], description: str | None = None) -> None:
    form.add_item(ui.Label(text=label, description=description, component=component))


def _about_sentence(setting: Setting) -> str:
    return f"{setting.description[:1].upper()}{setting.description[1:]}."


def _value_hint(setting: Setting) -> str:
    kinds = {
        "number": f"A whole number from {setting.minimum} to {setting.maximum}.",
        "cost": "Such as 30 min, 2 h or no limit.",
        "seconds": "Such as 90 s or 2 min.",
        "size": "Such as 512x512 or 1024.",
        "names": "Names with commas between them, all or none.",
        "channel": "A channel.",
    }
    if setting.kind not in kinds:
        return "Choose nothing to remove the rule."
    return f"{kinds[setting.kind]} {EMPTY_HINT}"[:LABEL_LENGTH]


def _value_field(setting: Setting, value: RuleValue | None) -> ui.Item[Any]:
    """Return a select if the setting has choices, else a line of text."""
    if setting.kind == "channel":
        return _channel_select(required=False, field="value")
    text = None if value is None else format_setting_value(setting, value)
    if setting.kind not in ("choice", "choices", "switch"):
        return ui.TextInput(
            custom_id="value", required=False, default=text and text[:VALUE_LENGTH], max_length=VALUE_LENGTH
        )
    choices = (YES_WORDS[0], NO_WORDS[0]) if setting.kind == "switch" else setting.choices
    selected = choices if value == ALL else value if isinstance(value, tuple) else (text,)
    options = [discord.SelectOption(label=choice, value=choice, default=choice in selected) for choice in choices]
    max_values = len(choices) if setting.kind == "choices" else 1
    return ui.Select(custom_id="value", options=options, required=False, min_values=0, max_values=max_values)


def _channel_select(*, required: bool, field: str = "channel") -> ui.ChannelSelect[Any]:
    kinds = [discord.ChannelType.text, discord.ChannelType.forum, discord.ChannelType.news]
    return ui.ChannelSelect(
        custom_id=field, channel_types=kinds, required=required, min_values=int(required), max_values=1
    )


def _subject_select(
    kind: type[ui.MentionableSelect[Any] | ui.RoleSelect[Any] | ui.UserSelect[Any]], *, required: bool
) -> ui.Item[Any]:
    return kind(custom_id="who", required=required, min_values=int(required), max_values=1)
