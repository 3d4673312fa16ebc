"""Discord's rules that neither its OpenAPI description contains nor simcord checks, written by hand.

Pure. Sources: Discord's documentation, "Application Commands", "Component Reference", "Message Object", "Embed Limits".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import discord

Problem = tuple[str, str]

NAME = re.compile(r"[-_'\w]{1,32}")
MESSAGE = re.compile(r"(POST|PATCH) .*(/messages(/\{\w+\}|/@original)?|/webhooks/\{\w+\}/\{\w+\})$")
SUBCOMMAND = 1
GROUP = 2
CHAT_INPUT = 1
LOCALES = {each.value for each in discord.Locale}
COMMANDS = {1: 100, 2: 15, 3: 15}  # kind → how many a bot or a server may have
ROW = 1
BUTTON = 2
TEXT = 10
V2 = 1 << 15
SELECTS = (3, 5, 6, 7, 8)
UPDATED = 7
AUTOCOMPLETE = 8
MODAL = 9


def findings(operation: str, body: Any, files: int) -> Iterator[Problem]:
    """Place and text of every problem."""
    if operation.endswith("/commands"):
        yield from _commands(body if isinstance(body, list) else [body])
    elif operation.endswith("/callback"):
        yield from _callback(body or {}, files)
    elif isinstance(body, dict) and MESSAGE.match(operation):
        yield from _message(body, files, "")


def _callback(body: dict[str, Any], files: int) -> Iterator[Problem]:
    data = body.get("data") or {}
    if body.get("type") == AUTOCOMPLETE:
        if len(_items(data, "choices")) > 25:
            yield "data.choices", "more than 25 choices"
    elif body.get("type") == MODAL:
        yield from _components(_items(data, "components"), "data.")
        if not 1 <= _length_of(data, "title") <= 45:
            yield "data.title", "not 1 to 45 characters"
    else:
        yield from _message(data, files, "data.")


def _message(body: dict[str, Any], files: int, location: str) -> Iterator[Problem]:
    if _length_of(body, "content") > 2000:
        yield f"{location}content", "longer than 2000 characters"
    attachments = _items(body, "attachments")
    if max(len(attachments), files) > 10:
        yield f"{location}attachments", "more than 10"
    if any(_length_of(each, "description") > 1024 for each in attachments):
        yield f"{location}attachments[].description", "longer than 1024 characters"
    yield from _embeds(_items(body, "embeds"), location)
    components = _items(body, "components")
    yield from _components(components, location)
    if int(body.get("flags") or 0) & V2:
        yield from _layout(body, components, location)
    elif len(components) > 5 or any(each.get("type") != ROW for each in components):
        yield f"{location}components", "without the flag for layouts: at most 5 rows"


def _embeds(embeds: list[dict[str, Any]], location: str) -> Iterator[Problem]:
    length = 0
    for embed in embeds:
        length += _length_of(embed, "title") + _length_of(embed, "description")
        length += _length_of(embed.get("footer"), "text") + _length_of(embed.get("author"), "name")
        length += sum(_length_of(each, "name") + _length_of(each, "value") for each in _items(embed, "fields"))
    if length > 6000:
        yield f"{location}embeds", "more than 6000 characters in all"


def _layout(body: dict[str, Any], components: list[dict[str, Any]], location: str) -> Iterator[Problem]:
    if any(body.get(name) for name in ("content", "embeds", "poll", "sticker_ids")):
        yield f"{location}flags", "a layout has no content, embeds, poll or stickers beside it"
    if sum(_length_of(each, "content") for each in walk_components(components) if each.get("type") == TEXT) > 4000:
        yield f"{location}components", "more than 4000 characters in all"


def _components(components: Iterable[dict[str, Any]], location: str) -> Iterator[Problem]:
    all_components = list(walk_components(components))
    if len(all_components) > 40:
        yield f"{location}components", "more than 40 in all"
    ids = [each["custom_id"] for each in all_components if each.get("custom_id") is not None]
    if len(set(ids)) < len(ids):
        yield f"{location}components", "the same custom_id twice"
    if any(not 1 <= len(str(each)) <= 100 for each in ids):
        yield f"{location}components", "a custom_id that has not 1 to 100 characters"
    for each in all_components:
        for problem in _component(each):
            yield f"{location}components", problem


def _component(each: dict[str, Any]) -> Iterator[str]:
    kind = each.get("type")
    children = _items(each, "components")
    if kind == ROW:
        select_count = sum(one.get("type") in SELECTS for one in children)
        if not children or len(children) > 5 or (select_count and len(children) > 1):
            yield "a row holds 1 to 5 buttons or one menu"
    elif kind == BUTTON:
        if not each.get("label") and not each.get("emoji") and each.get("style") != 6:
            yield "a button with neither label nor emoji"
        if (each.get("style") in (1, 2, 3, 4)) != (each.get("custom_id") is not None):
            yield "a button has a custom_id, or a link"
    elif kind == 3 and not 1 <= len(_items(each, "options")) <= 25:
        yield "a menu has 1 to 25 options"


def walk_components(components: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every component, nested ones included."""
    for each in components:
        yield each
        yield from walk_components(_items(each, "components"))
        yield from walk_components(
            [one for one in (each.get("component"), each.get("accessory")) if isinstance(one, dict)]
        )


def _commands(commands: list[dict[str, Any]]) -> Iterator[Problem]:
    for kind, max_count in COMMANDS.items():
        if sum(each.get("type", CHAT_INPUT) == kind for each in commands) > max_count:
            yield "", f"more than {max_count} commands of type {kind}"
    for command in commands:
        chat = command.get("type", CHAT_INPUT) == CHAT_INPUT
        yield from ((f"[]{location}", problem) for location, problem in _node(command, chat=chat))
        if _length(command) > 8000:
            yield "[]", "more than 8000 characters in all"


def _node(node: dict[str, Any], *, chat: bool) -> Iterator[Problem]:
    """A command, a subcommand or an option."""
    name = str(node.get("name") or "")
    description_length = _length_of(node, "description")
    if chat and (not NAME.fullmatch(name) or name != name.lower()):
        yield ".name", "not 1 to 32 lower-case letters, digits, - or _"
    if chat != (1 <= description_length <= 100):
        yield ".description", "not 1 to 100 characters" if chat else "only a slash command has one"
    for part in ("name_localizations", "description_localizations"):
        if unknown_locales := (node.get(part) or {}).keys() - LOCALES:
            yield f".{part}", f"unknown locale {min(unknown_locales)}"
    if node.get("choices") and node.get("autocomplete"):
        yield ".choices", "beside autocomplete"
    if len(_items(node, "choices")) > 25:
        yield ".choices", "more than 25"
    options = _items(node, "options")
    yield from _options(options)
    for option in options:
        yield from ((f".options[]{location}", problem) for location, problem in _node(option, chat=True))


def _options(options: list[dict[str, Any]]) -> Iterator[Problem]:
    if len(options) > 25:
        yield ".options", "more than 25"
    if len({each.get("name") for each in options}) < len(options):
        yield ".options", "the same name twice"
    values = [bool(each.get("required")) for each in options if each.get("type") not in (SUBCOMMAND, GROUP)]
    if values != sorted(values, reverse=True):
        yield ".options", "a required option after one that is not"


def _length(node: dict[str, Any]) -> int:
    """Characters of names, descriptions and values, each in its longest language."""
    length = sum(
        max(_length_of(node, part), *map(len, (node.get(f"{part}_localizations") or {"": ""}).values()))
        for part in ("name", "description")
    )
    length += len(node["value"]) if isinstance(node.get("value"), str) else 0
    return length + sum(_length(each) for each in [*_items(node, "options"), *_items(node, "choices")])


def _items(node: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in a list. The description covers values that are no list, or contain no objects."""
    value = node.get(name)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _length_of(node: Any, name: str) -> int:
    value = node.get(name) if isinstance(node, dict) else None
    return len(value) if isinstance(value, str) else 0
