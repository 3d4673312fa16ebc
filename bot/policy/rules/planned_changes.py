"""Computes the steps of a change from the current rules of a guild and the requested ones: one by one, by a preset's
name, or from YAML. Pure.

A YAML file lists, for the server and for each channel, role and user, settings and values as an admin would type them.
It replaces all rules of a server but the operator's ceilings, and whether the server is closed. Everything in it is
text: no tags, no anchors, no implicit types. Every mistake is one sentence with its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import yaml

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.policy.rules.catalogue import SETTINGS, Setting
from bot.policy.rules.explanations import format_for_sentence
from bot.policy.rules.rule import (
    EVERYWHERE,
    Rule,
    RuleChange,
    RuleKey,
    RuleStep,
    RuleValue,
    Scope,
    check_subject,
    diff_rules,
    normalise_subject,
)
from bot.policy.rules.value_parser import find_setting, format_setting_value, nearest_name, parse_list, parse_value

RulesByKey = Mapping[RuleKey, RuleValue]
MAX_RULES = 1000  # of one guild
MAX_CHARACTERS = 200_000  # characters of all of them: each request reads them, and a change may record them all


def check_scope(setting: Setting, guild: str, scope: Scope, subject: str) -> None:
    """Raise `UserError` (422) if a setting cannot be set for that scope and subject."""
    allowed_scopes = tuple(
        other_scope for other_scope in setting.scopes if guild != EVERYWHERE or other_scope in ("operator", "user")
    )
    if scope not in allowed_scopes:
        # ceilings: the operator alone
        offered_scopes = [name for name in allowed_scopes if name != "operator" or guild == EVERYWHERE]
        scope_names = (
            ", ".join("server" if name == "guild" else name for name in offered_scopes) or "one server at a time"
        )
        raise UserError(f"{setting.name} cannot be set for {_scope_with_article(scope)}; it can for: {scope_names}.")
    if (scope in ("operator", "guild")) != (not subject):
        raise UserError(f"A rule for {_scope_with_article(scope)} {'takes no id' if subject else 'needs its id'}.")
    if subject:
        check_subject(guild, scope, subject)


def _scope_with_article(scope: Scope) -> str:
    return {"operator": "a ceiling", "guild": "a server"}.get(scope, f"a {scope}")


def plan_rule(current_rules: RulesByKey, key: RuleKey, value: RuleValue | None) -> tuple[RuleStep, ...]:
    """Return the steps that set one rule or (None) unset it. Raises `UserError` (422) if nothing changes."""
    new_rules = {**current_rules, key: value}
    steps = diff_rules(current_rules, {key: value for key, value in new_rules.items() if value is not None})
    if not steps and value is None:
        raise UserError(f"There is no such rule: {key[2]} is not set there.")
    if not steps:
        raise UserError(f"{key[2]} is {format_for_sentence(key[2], value)} there already.")
    return _check_size(current_rules, steps)


def plan_rules(current_rules: RulesByKey, values: Mapping[RuleKey, RuleValue | None]) -> tuple[RuleStep, ...]:
    """Return the steps that set or (None) unset several rules; others stay. Raises `UserError` if nothing changes."""
    new_rules = {key: value for key, value in {**current_rules, **values}.items() if value is not None}
    steps = diff_rules(current_rules, new_rules)
    if not steps:
        raise UserError("All of that is set already.")
    return _check_size(current_rules, steps)


def plan_reopening(current_rules: RulesByKey, *, is_operator: bool) -> tuple[RuleStep, ...]:
    """Return the steps that remove `closed`. Raises `UserError` if it is open (422) or the operator closed it (403)."""
    operator_key = ("operator", "", "closed")
    guild_key = ("guild", "", "closed")
    if operator_key in current_rules and not is_operator:
        raise UserError("This bot's operator closed this server: only they can open it.", 403)
    if operator_key not in current_rules and guild_key not in current_rules:
        raise UserError("It is open already.")
    return diff_rules(
        current_rules, {key: value for key, value in current_rules.items() if key not in (operator_key, guild_key)}
    )


def plan_import(current_rules: RulesByKey, values: RulesByKey) -> tuple[RuleStep, ...]:
    """Return the steps that replace all rules that a YAML file can hold. Raises `UserError` if nothing changes."""
    unaffected_rules = {
        key: value for key, value in current_rules.items() if key[0] == "operator" or key[2] in EXCLUDED_SETTINGS
    }
    steps = diff_rules(current_rules, {**unaffected_rules, **values})
    if not steps:
        raise UserError("The rules are the same already: nothing to import.")
    return _check_size(current_rules, steps)


def plan_undo(current_rules: RulesByKey, change: RuleChange, later_change: int | None) -> tuple[RuleStep, ...]:
    """Return the steps that undo a change. Raises `UserError` if it is undone, or if one of its rules was set again.

    `later_change`: the newest later change of one of its rules, for the sentence.
    """
    if change.undone_by is not None:
        raise UserError(f"Change {change.number} is undone already, by change {change.undone_by}.")
    for step in change.steps:
        if current_rules.get(step.key) != step.after:
            change_note = f" by change {later_change}" if later_change else ""
            raise UserError(
                f"Change {change.number} cannot be undone: {step.setting} was changed again since{change_note}. "
                f"Undo that first, or set it by hand."
            )
    return _check_size(current_rules, tuple(step.inverse() for step in reversed(change.steps)))


def closed_value(reason: str, name: str) -> str:
    """Return the value of `closed`: the reason, and who closed it."""
    max_length = SETTINGS["closed"].maximum
    signature = f" (closed by {shorten(name, 60)})"
    return (shorten(reason, max_length - len(signature)).rstrip(".") or "no reason given") + signature


def _check_size(current_rules: RulesByKey, steps: tuple[RuleStep, ...]) -> tuple[RuleStep, ...]:
    """Return the steps. Raises `UserError` if they bring the admins' rules over a server's limits of number or length.

    Steps that remove rules always pass. So do ceilings and closing: a full server cannot keep them out.
    """
    admin_steps = [step for step in steps if step.scope != "operator" and step.setting not in EXCLUDED_SETTINGS]
    added_rules = sum((step.before is None) - (step.after is None) for step in admin_steps)
    admin_rules = [
        (key, value) for key, value in current_rules.items() if key[0] != "operator" and key[2] not in EXCLUDED_SETTINGS
    ]
    if added_rules > 0 and len(admin_rules) + added_rules > MAX_RULES:
        raise UserError(
            f"A server has at most {MAX_RULES} rules; it has {len(admin_rules)}, and these are {added_rules} more."
        )
    added_characters = sum(
        _rule_length(step.key, step.after) - _rule_length(step.key, step.before) for step in admin_steps
    )
    total_characters = sum(_rule_length(key, value) for key, value in admin_rules)
    if added_characters > 0 and total_characters + added_characters > MAX_CHARACTERS:
        raise UserError(
            f"All rules of a server have at most {MAX_CHARACTERS:,} characters together; these would make them "
            f"{total_characters + added_characters:,}. Shorten or remove some lists first."
        )
    return steps


def _rule_length(key: RuleKey, value: RuleValue | None) -> int:
    """Return the characters of a rule; 0 for none."""
    if value is None:
        return 0
    return sum(map(len, key)) + sum(map(len, value if isinstance(value, tuple) else (str(value),)))


MAX_BYTES = 64 * 1024
MAX_EVENTS = 20_000  # YAML events of a file: more than a server's rules make
SECTIONS: Mapping[str, Scope] = {"server": "guild", "channels": "channel", "roles": "role", "users": "user"}
Node: TypeAlias = "str | list[Node] | dict[str, tuple[int, Node]]"  # of a file; each value with its line
EXCLUDED_SETTINGS = ("closed",)  # a state and no rule: `close` and `open` set it
HEADER = """\
# The rules of one server. Import this file to replace all of its rules, as one change.
# Settings, units and which rule decides: docs/limits.md
"""


def dump_rules(rules: Iterable[Rule]) -> str:
    """Return a server's rules as YAML."""
    document: dict[str, Any] = {"version": 1}
    titles = {scope: title for title, scope in SECTIONS.items()}
    for rule in sorted(
        rules, key=lambda rule: (list(titles).index(rule.scope) if rule.scope in titles else 0, rule.key)
    ):
        if rule.scope not in titles or rule.setting in EXCLUDED_SETTINGS or rule.setting not in SETTINGS:
            continue
        section = document.setdefault(titles[rule.scope], {})
        values = section if rule.scope == "guild" else section.setdefault(rule.subject, {})
        values[rule.setting] = _yaml_value(SETTINGS[rule.setting], rule.value)
    return HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def _yaml_value(setting: Setting, value: RuleValue) -> Any:
    """Return a value as YAML shows it best; `load_rules` parses its text."""
    if isinstance(value, tuple) and setting.kind == "texts":
        return list(value)
    if isinstance(value, bool) or setting.kind == "number":
        return value if not isinstance(value, tuple) else list(value)
    return format_setting_value(setting, value)


def load_rules(text: str, guild: str = "") -> dict[RuleKey, RuleValue]:
    """Parse the rules of a file for `guild`. Raises `UserError` (422, 413) for the first mistake."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise UserError(f"A rules file has at most {MAX_BYTES // 1024} KiB.", 413)
    document = _parse_tree(text)
    rules: dict[RuleKey, RuleValue] = {}
    for title, (line, section) in _require_mapping(document, 1, "a rules file").items():
        if title == "version":
            if section != "1":
                raise _line_error(line, f"this bot reads version 1, not “{shorten(str(section), 20)}”")
            continue
        if title not in SECTIONS:
            raise _line_error(
                line,
                f"there is no section “{shorten(title, 40)}”; the nearest is {nearest_name(title, tuple(SECTIONS))}",
            )
        scope = SECTIONS[title]
        if scope == "guild":
            rules |= _load_section(scope, "", section, line)
            continue
        for subject, (subject_line, values) in _require_mapping(section, line, title).items():
            subject_id = normalise_subject(guild, scope, subject)
            try:
                check_subject(guild, scope, subject_id)
            except UserError as error:
                raise _line_error(subject_line, error.sentence.rstrip(".")) from None
            rules |= _load_section(scope, subject_id, values, subject_line)
    return rules


def _load_section(scope: Scope, subject: str, section: Node, line: int) -> dict[RuleKey, RuleValue]:
    rules: dict[RuleKey, RuleValue] = {}
    for name, (value_line, value) in _require_mapping(section, line, subject or "server").items():
        try:
            setting = find_setting(name)
            if setting.name in EXCLUDED_SETTINGS:
                raise UserError(f"{setting.name} cannot be imported: close and open are for the server's owner.")
            if scope not in setting.scopes:
                raise UserError(f"{setting.name} cannot be set for a {scope}.")
            texts = [part for part in value if isinstance(part, str)] if isinstance(value, list) else []
            if isinstance(value, dict) or (isinstance(value, list) and len(texts) < len(value)):
                raise UserError(f"{setting.name} takes a value, or a list of values.")
            rules[scope, subject, setting.name] = (
                parse_list(setting, texts) if isinstance(value, list) else parse_value(setting, value)
            )
        except UserError as error:
            raise _line_error(value_line, error.sentence.rstrip(".")) from None
    return rules


def _line_error(line: int, problem: str) -> UserError:
    return UserError(f"Line {line} of the file: {problem}.")


def _require_mapping(node: Node, line: int, node_name: str) -> dict[str, tuple[int, Node]]:
    if node == "":
        return {}
    if not isinstance(node, dict):
        raise _line_error(line, f"{node_name} must list names and values, as in “running: 3”")
    return node


def _parse_tree(text: str) -> Node:
    """Return the file as a tree, at most four deep, against YAML bombs."""
    stack: list[_OpenNode] = [_OpenNode(1)]
    try:
        events: Iterator[yaml.Event] = cast(Any, yaml).parse(text, Loader=yaml.SafeLoader)
        for count, event in enumerate(events):
            line: int = event.start_mark.line + 1
            if count > MAX_EVENTS:
                raise _line_error(line, f"it has more than {MAX_EVENTS} parts")
            _consume_event(stack, event, line)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = shorten(str(getattr(error, "problem", None) or "it is not YAML"), 100)
        raise _line_error(mark.line + 1 if mark else 1, problem) from None
    return stack[0].items[0] if stack[0].items else ""


class _OpenNode:
    """A mapping or list that is being parsed; `keys` is None for a list."""

    def __init__(self, line: int, *, is_mapping: bool = False) -> None:
        self.line = line
        self.items = []
        self.items: list[Node]
        self.keys: dict[str, tuple[int, Node]] | None = {} if is_mapping else None
        self.key: tuple[str, int] | None = None

    def put(self, value: Node, line: int) -> None:
        if self.keys is None:
            self.items.append(value)
        elif self.key is None:
            if not isinstance(value, str):
                raise _line_error(line, "a name must be a text")
            if value in self.keys:
                raise _line_error(line, f"“{shorten(value, 40)}” appears twice")
            self.key = (value, line)
        else:
            self.keys[self.key[0]] = (self.key[1], value)
            self.key = None


def _consume_event(stack: list[_OpenNode], event: yaml.Event, line: int) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise _line_error(line, "anchors and aliases (& and *) are not allowed")
    if getattr(event, "tag", None):
        raise _line_error(line, "tags (!) are not allowed")
    if isinstance(event, yaml.ScalarEvent):
        stack[-1].put(str(event.value), line)
    elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
        if len(stack) > 4:
            raise _line_error(line, "it is nested too deep")
        stack.append(_OpenNode(line, is_mapping=isinstance(event, yaml.MappingStartEvent)))
    elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
        node = stack.pop()
        stack[-1].put(node.items if node.keys is None else node.keys, node.line)
    elif isinstance(event, yaml.DocumentStartEvent) and stack[0].items:
        raise _line_error(line, "it is more than one document")


@dataclass(frozen=True)
class Preset:
    """`values` by setting, as an admin would type them."""

    name: str
    description: str
    values: Mapping[str, str]


_PRESETS = (
    Preset(
        "small server",
        "among friends: generous limits for each member, none for the whole server",
        {"running": "3", "queued": "20", "cost_day": "2 h", "results": "choice", "speeds": "all"},
    ),
    Preset(
        "large server",
        "many strangers: low limits for each member and the whole server, relaxed beyond them",
        {
            "running": "1",
            "queued": "3",
            "cost_day": "15 min",
            "cost_month": "3 h",
            "steps": "250",
            "together_running": "20",
            "together_queued": "300",
            "together_cost_day": "12 h",
            "results": "choice",
            "speeds": "all",
        },
    ),
    Preset(
        "contest",
        "the same for everybody: one public job at a time, all with the same step limit",
        {
            "running": "1",
            "queued": "1",
            "cost_day": "30 min",
            "steps": "100",
            "count": "4",
            "results": "public",
            "speeds": "fast",
            "together_queued": "300",
        },
    ),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _PRESETS})


def find_preset(name: str) -> Preset:
    """Return the preset of that name. Raises `UserError` (422), naming the nearest one."""
    preset = PRESETS.get(" ".join(name.casefold().replace("_", " ").replace("-", " ").split()))
    if preset is None:
        raise UserError(
            f"There is no preset “{shorten(name, 40)}”; the nearest is {nearest_name(name, tuple(PRESETS))}."
        )
    return preset


def preset_rules(preset: Preset) -> dict[RuleKey, RuleValue]:
    """Return its values as rules for the whole server."""
    return {("guild", "", name): parse_value(SETTINGS[name], text) for name, text in preset.values.items()}
