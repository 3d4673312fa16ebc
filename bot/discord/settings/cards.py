"""Cards for admins: the overview, and the exceptions for channels, roles and members.

Pure but for discord's components. Lines are short, for a phone; common actions are one tap away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from discord import ui

from bot.discord.settings import texts, ui_parts
from bot.discord.settings.explanations import Section
from bot.domain.texts import escape_discord
from bot.policy.rules.catalogue import SETTINGS, EffectiveRules
from bot.policy.rules.rule import EVERYWHERE, Rule, RuleChange, RuleValue, Scope

EXCEPTION_TITLES: dict[Scope, str] = {"channel": "Channels", "role": "Roles", "user": "Members"}
RULES_PER_PAGE = 15  # rules on one page of exceptions
CHANGES_PER_PAGE = 5  # on one page of the history
RED = 0xED4245
GREEN = 0x57F287
BLUE = 0x5865F2
EXPLAIN_HINT = "What may one member do, and why? …"
LEGEND = "-# **Bold** is set on this server, 🔒 by this bot's operator; the rest is the bot's default."
PRECEDENCE = "-# The most specific rule holds: member, then role, channel, everyone."


def build_overview(
    effective_rules: EffectiveRules,
    rules: Sequence[Rule],
    notice: Sequence[ui.Item[Any]] = (),
    model_costs: Sequence[str] = (),
) -> ui.LayoutView:
    """Return the card of what holds for everyone, with the number of exceptions and every possible change.

    `model_costs`: lines on what a picture of each model costs.
    """
    items: list[ui.Item[Any]] = [*notice, ui_parts.make_text("## Settings of this server")]
    if effective_rules.closed:
        closed_text = f"🔴 **Closed**: {escape_discord(effective_rules.closed, 300)}"
        items.append(
            ui_parts.text_with_button(closed_text, ui_parts.make_button("Open", "open", style=ui_parts.Style.success))
        )
    items += [
        *_overview_texts(effective_rules, model_costs),
        ui_parts.select(
            "Change a limit of each member …", _select_options(texts.MEMBER_LIMITS, effective_rules), "change"
        ),
        ui_parts.select(
            "Change this server …",
            _select_options((*texts.SHARED_LIMITS, *texts.SWITCHES), effective_rules),
            "change",
            "server",
        ),
        ui.ActionRow(ui.UserSelect[Any](placeholder=EXPLAIN_HINT, custom_id=ui_parts.component_id("explain"))),
        ui_parts.make_row(
            *(_exceptions_button(scope, rules) for scope in EXCEPTION_TITLES),
            ui_parts.make_button("Incidents", "incidents", "waiting", 0),
        ),
        _action_buttons(is_closed=bool(effective_rules.closed)),
    ]
    return ui_parts.make_layout(*items, colour=RED if effective_rules.closed else BLUE)


def _overview_texts(effective_rules: EffectiveRules, model_costs: Sequence[str]) -> list[ui.Item[Any]]:
    return [
        ui_parts.make_text("### Each member", *(_setting_line(name, effective_rules) for name in texts.MEMBER_LIMITS)),
        ui_parts.make_text(
            "### All together",
            *(_setting_line(name, effective_rules, texts.shared_limit_title(name)) for name in texts.SHARED_LIMITS),
        ),
        ui_parts.make_text(
            "### This server",
            *(_setting_line(name, effective_rules) for name in (*texts.SWITCHES, "words", "patterns")),
        ),
        *([ui_parts.make_text("### Models", *model_costs)] if model_costs else []),
        ui_parts.make_text(LEGEND, PRECEDENCE),
    ]


def build_exceptions(
    scope: Scope, rules: Sequence[Rule], page: int, notice: Sequence[ui.Item[Any]] = ()
) -> ui.LayoutView:
    """Return the rules for single channels, roles or members, numbered, since a select can show no mentions."""
    scope_rules = _rules_of_scope(scope, rules)
    pages = max(1, -(-len(scope_rules) // RULES_PER_PAGE))
    page = max(0, min(page, pages - 1))
    page_rules = scope_rules[page * RULES_PER_PAGE : (page + 1) * RULES_PER_PAGE]
    numbered_rules = [(number, rule) for number, rule in enumerate(page_rules, page * RULES_PER_PAGE + 1)]
    lines = [
        f"`{number}` {texts.subject_mention(scope, rule.subject)} · {texts.setting_title(rule.setting)}: "
        f"**{texts.format_for_card(rule.setting, rule.value)}**"
        for number, rule in numbered_rules
    ]
    items: list[ui.Item[Any]] = [*notice, ui_parts.make_text(f"## {EXCEPTION_TITLES[scope]} with rules of their own")]
    items.append(ui_parts.make_text(*(lines or ["None."])))
    if numbered_rules:
        items.append(ui_parts.select("Change or remove one …", map(_rule_option, numbered_rules), "change", "rule"))
    items += ui_parts.make_pager("page", scope, page=page, pages=pages)
    items.append(
        ui_parts.make_row(ui_parts.make_button("Back", "show"), ui_parts.make_button("Add a rule", "add", scope))
    )
    return ui_parts.make_layout(*items, colour=BLUE)


def build_explanation(header: str, sections: Sequence[Section], user: str) -> ui.LayoutView:
    """Return what holds for a member, group by group, and a select to set it for them."""
    options = [
        (f"user/discord:{user}/{name}", texts.setting_title(name), SETTINGS[name].description)
        for name in texts.MEMBER_LIMITS
    ]
    characters_left = ui_parts.LAYOUT_CHARACTERS - len(header)
    items = list[ui.Item[Any]]([ui_parts.make_text(header)])
    for heading, lines in sections:
        fitting_lines = texts.fit_lines([f"### {heading}", *lines] if heading else lines, characters_left)
        characters_left -= len("\n".join(fitting_lines))
        items += [ui.Separator(), ui_parts.make_text(*fitting_lines)]
    items += [
        ui_parts.select("Set something for this member …", options, "change", "member"),
        ui_parts.make_row(ui_parts.make_button("All settings", "show")),
    ]
    return ui_parts.make_layout(*items, colour=BLUE)


def build_history(
    changes: Sequence[RuleChange], page: int, undoable: Collection[int], notice: Sequence[ui.Item[Any]] = ()
) -> ui.LayoutView:
    """Return one page of changes, the newest first; the reader may undo those of the numbers `undoable`."""
    pages = max(1, -(-len(changes) // CHANGES_PER_PAGE))
    page = max(0, min(page, pages - 1))
    items: list[ui.Item[Any]] = [*notice, ui_parts.make_text("## What was changed here")]
    if not changes:
        items.append(ui_parts.make_text("Nothing yet."))
    for change in changes[page * CHANGES_PER_PAGE : (page + 1) * CHANGES_PER_PAGE]:
        disabled = change.undone_by is not None or change.number not in undoable
        items.append(
            ui_parts.text_with_button(
                texts.format_entry(change), ui_parts.make_button("Undo", "back", change.number, page, disabled=disabled)
            )
        )
    items += ui_parts.make_pager("log", page=page, pages=pages)
    items.append(ui_parts.make_row(ui_parts.make_button("All settings", "show")))
    return ui_parts.make_layout(*items, colour=BLUE)


def build_notice(line: str, undo_number: int | None = None) -> list[ui.Item[Any]]:
    """Return what has just happened, for the top of a card; `undo_number`: the number of the change that a button
    reverts.
    """
    if undo_number is None:
        return [ui_parts.make_text(line), ui.Separator()]
    return [ui_parts.text_with_button(line, ui_parts.make_button("Undo", "undo", undo_number)), ui.Separator()]


def build_question(lines: Sequence[str], confirm_button: ui.Button[Any]) -> ui.LayoutView:
    """Return a card that shows what would change, and asks."""
    fitting_lines = texts.fit_lines(lines, ui_parts.LAYOUT_CHARACTERS)
    return ui_parts.make_layout(
        ui_parts.make_text(*fitting_lines),
        ui_parts.make_row(confirm_button, ui_parts.make_button("Cancel", "dismiss")),
        colour=BLUE,
    )


def build_result(line: str, *, undo_number: int | None = None, success: bool = True) -> ui.LayoutView:
    """Return one sentence, with buttons to undo and to go back."""
    buttons = [ui_parts.make_button("All settings", "show")]
    if undo_number is not None:
        buttons.insert(0, ui_parts.make_button("Undo", "undo", undo_number))
    return ui_parts.make_layout(ui_parts.make_text(line), ui_parts.make_row(*buttons), colour=GREEN if success else RED)


def _setting_line(name: str, effective_rules: EffectiveRules, title: str = "") -> str:
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
    return [(name, texts.setting_title(name), _describe_setting(name, effective_rules.get(name))) for name in names]


def _describe_setting(name: str, value: RuleValue | None) -> str:
    no_value = texts.NO_LIMIT if name in texts.SHARED_LIMITS else "nothing"
    current = texts.format_for_field(name, value)[:40] if value not in (None, "") else no_value
    return f"now {current}: {SETTINGS[name].description}"


def _rules_of_scope(scope: Scope, rules: Sequence[Rule]) -> list[Rule]:
    scope_rules = (rule for rule in rules if rule.scope == scope and rule.guild != EVERYWHERE)
    return sorted(scope_rules, key=lambda rule: (rule.subject, list(SETTINGS).index(rule.setting)))


def _exceptions_button(scope: Scope, rules: Sequence[Rule]) -> ui.Button[Any]:
    return ui_parts.make_button(f"{EXCEPTION_TITLES[scope]}: {len(_rules_of_scope(scope, rules))}", "page", scope, 0)


def _rule_option(numbered_rule: tuple[int, Rule]) -> tuple[str, str, str]:
    number, rule = numbered_rule
    return (
        rule_id(rule),
        f"{number} · {texts.setting_title(rule.setting)}",
        texts.format_for_field(rule.setting, rule.value),
    )


def rule_id(rule: Rule) -> str:
    """Return a rule as one word: scope, subject, setting. Subjects may have colons in them."""
    return f"{rule.scope}/{rule.subject}/{rule.setting}"


def _action_buttons(*, is_closed: bool) -> ui.ActionRow[Any]:
    buttons = [
        ui_parts.make_button("History", "log", 0),
        ui_parts.make_button("Presets", "presets"),
        ui_parts.make_button("Words", "words"),
        ui_parts.make_button("Export", "export"),
    ]
    if not is_closed:
        buttons.append(ui_parts.make_button("Close", "close", style=ui_parts.Style.danger))
    return ui_parts.make_row(*buttons)
