"""Rules as YAML and back. Everything in the file is parsed as text: no tags, no anchors, no implicit types.

The file lists, for the server and for each channel, role and user, settings and values as an admin would type them. It
replaces all rules of a server: a rule that is not in it is removed. It does not hold the operator's ceilings, or
whether the server is closed. Every mistake is one sentence with its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from bot.refused import Refused
from bot.rules.catalogue import SETTINGS, Setting
from bot.rules.reading import nearest, read, read_list, setting, written
from bot.rules.rule import Key, Rule, Scope, Value, addressed, check_subject
from bot.sentences import shortened

BYTES = 64 * 1024
EVENTS = 20_000  # YAML events of a file: more than a server's rules make
SECTIONS: Mapping[str, Scope] = {"server": "guild", "channels": "channel", "roles": "role", "users": "user"}
ABSENT = ("closed",)  # a state and no rule: `close` and `open` set it
HEAD = """\
# The rules of one server. Import this file to replace all of its rules, as one change.
# Settings, units and which rule decides: docs/limits.md
"""


def out(rules: Iterable[Rule]) -> str:
    """Return a server's rules as YAML."""
    found: dict[str, Any] = {"version": 1}
    titles = {scope: title for title, scope in SECTIONS.items()}
    for rule in sorted(
        rules, key=lambda rule: (list(titles).index(rule.scope) if rule.scope in titles else 0, rule.key)
    ):
        if rule.scope not in titles or rule.setting in ABSENT or rule.setting not in SETTINGS:
            continue
        section = found.setdefault(titles[rule.scope], {})
        values = section if rule.scope == "guild" else section.setdefault(rule.subject, {})
        values[rule.setting] = _native(SETTINGS[rule.setting], rule.value)
    return HEAD + yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=110)


def _native(one: Setting, value: Value) -> Any:
    """Return a value as YAML shows it best; `bring` parses its text."""
    if isinstance(value, tuple) and one.kind == "texts":
        return list(value)
    if isinstance(value, bool) or one.kind == "number":
        return value if not isinstance(value, tuple) else list(value)
    return written(one, value)


def bring(text: str, guild: str = "") -> dict[Key, Value]:
    """Parse the rules of a file for `guild`. Raises `Refused` (422, 413) for the first mistake."""
    if len(text.encode("utf-8", "replace")) > BYTES:
        raise Refused(f"A rules file has at most {BYTES // 1024} KiB.", 413)
    read_in = _tree(text)
    found: dict[Key, Value] = {}
    for title, (line, section) in _mapping(read_in, 1, "a rules file").items():
        if title == "version":
            if section != "1":
                raise _wrong(line, f"this bot reads version 1, not “{shortened(str(section), 20)}”")
            continue
        if title not in SECTIONS:
            raise _wrong(
                line, f"there is no section “{shortened(title, 40)}”; the nearest is {nearest(title, tuple(SECTIONS))}"
            )
        scope = SECTIONS[title]
        if scope == "guild":
            found |= _rules(scope, "", section, line)
            continue
        for subject, (at, values) in _mapping(section, line, title).items():
            whom = addressed(guild, scope, subject)
            try:
                check_subject(guild, scope, whom)
            except Refused as refused:
                raise _wrong(at, refused.sentence.rstrip(".")) from None
            found |= _rules(scope, whom, values, at)
    return found


def _rules(scope: Scope, subject: str, section: Any, line: int) -> dict[Key, Value]:
    found: dict[Key, Value] = {}
    for name, (at, value) in _mapping(section, line, subject or "server").items():
        try:
            one = setting(name)
            if one.name in ABSENT:
                raise Refused(f"{one.name} cannot be imported: close and open are for the server's owner.")
            if scope not in one.scopes:
                raise Refused(f"{one.name} cannot be set for a {scope}.")
            if isinstance(value, dict) or (
                isinstance(value, list) and not all(isinstance(part, str) for part in value)
            ):
                raise Refused(f"{one.name} takes a value, or a list of values.")
            found[scope, subject, one.name] = read_list(one, value) if isinstance(value, list) else read(one, value)
        except Refused as refused:
            raise _wrong(at, refused.sentence.rstrip(".")) from None
    return found


def _wrong(line: int, what: str) -> Refused:
    return Refused(f"Line {line} of the file: {what}.")


def _mapping(found: Any, line: int, what: str) -> dict[str, tuple[int, Any]]:
    if found == "":
        return {}
    if not isinstance(found, dict):
        raise _wrong(line, f"{what} must list names and values, as in “running: 3”")
    return found


def _tree(text: str) -> Any:
    """Return mappings as {key: (line, value)}, lists of texts, and texts; at most four deep, against YAML bombs."""
    stack: list[_Open] = [_Open(1)]
    try:
        for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            line = event.start_mark.line + 1
            if count > EVENTS:
                raise _wrong(line, f"it has more than {EVENTS} parts")
            _take(stack, event, line)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = shortened(str(getattr(error, "problem", None) or "it is not YAML"), 100)
        raise _wrong(mark.line + 1 if mark else 1, problem) from None
    return stack[0].items[0] if stack[0].items else ""


class _Open:
    """A mapping or list that is being parsed; `keys` is None for a list."""

    def __init__(self, line: int, *, mapping: bool = False) -> None:
        self.line, self.items = line, []
        self.items: list[Any]
        self.keys: dict[str, tuple[int, Any]] | None = {} if mapping else None
        self.key: tuple[str, int] | None = None

    def put(self, value: Any, line: int) -> None:
        if self.keys is None:
            self.items.append(value)
        elif self.key is None:
            if not isinstance(value, str):
                raise _wrong(line, "a name must be a text")
            if value in self.keys:
                raise _wrong(line, f"“{shortened(value, 40)}” appears twice")
            self.key = (value, line)
        else:
            self.keys[self.key[0]] = (self.key[1], value)
            self.key = None


def _take(stack: list[_Open], event: yaml.Event, line: int) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise _wrong(line, "anchors and aliases (& and *) are not allowed")
    if getattr(event, "tag", None):
        raise _wrong(line, "tags (!) are not allowed")
    if isinstance(event, yaml.ScalarEvent):
        stack[-1].put(str(event.value), line)
    elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
        if len(stack) > 4:
            raise _wrong(line, "it is nested too deep")
        stack.append(_Open(line, mapping=isinstance(event, yaml.MappingStartEvent)))
    elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
        closed = stack.pop()
        stack[-1].put(closed.items if closed.keys is None else closed.keys, closed.line)
    elif isinstance(event, yaml.DocumentStartEvent) and stack[0].items:
        raise _wrong(line, "it is more than one document")
