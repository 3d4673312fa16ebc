"""Tries everything that a bot offers: every command, then one of each kind of button, menu and form.

Knows Discord's kinds of options and components, not what they mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simcord.backend.errors import BackendError, SetupError
from simcord.interactions import command_leaves

from tools.loopback.members import Act, Person
from tools.loopback.unwritten_rules import walk_components

if TYPE_CHECKING:
    from simcord.backend.models import Message
    from simcord.builders import ChannelHandle

VARIES = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}|\d+")  # ids of jobs, numbers of pages and pictures
SLASH = 1
OF_USER = 2
OF_MESSAGE = 3
BUTTON = 2
MENU = 3
PEOPLE = 5
ROLES = 6
ANYBODY = 7
CHANNELS = 8
TEXT = 3
INTEGER = 4
BOOLEAN = 5
MEMBER = 6
CHANNEL = 7
ROLE = 8
MENTIONED = 9
NUMBER = 10
FILE = 11


@dataclass
class Explorer:
    """A member who tries everything once. `steps` describes each step."""

    member: Person
    channel: ChannelHandle
    role: Any
    file: bytes
    texts: dict[str, str] = field(default_factory=dict)  # option → the text to type
    steps: list[str] = field(default_factory=list)
    unanswered_steps: list[str] = field(default_factory=list)  # steps without an answer in time
    _tried_kinds: set[str] = field(default_factory=set)
    _origins: dict[int, tuple[Any, dict[str, Any]]] = field(default_factory=dict)  # act → how to repeat it

    async def try_commands(self) -> list[Act]:
        """Try every slash command with its required options and with all, using the bot's suggestions."""
        acts = []
        for command in self._visible_commands():
            if command.get("type", SLASH) == SLASH:
                for path, leaf in command_leaves(command):
                    acts.extend(await self._try_command(" ".join(path), leaf.get("options") or []))
        return acts

    async def _try_command(self, name: str, options: list[dict[str, Any]]) -> list[Act]:
        acts = []
        all_values = {each["name"]: await self._first_suggestion(name, each) or self._value(each) for each in options}
        required_values = {each["name"]: all_values[each["name"]] for each in options if each.get("required")}
        for values in [required_values, all_values] if all_values != required_values else [required_values]:
            act = await self._act(f"/{name} {' '.join(values)}", self.member.slash, self.channel, name, **values)
            acts.extend([act] if act else [])
        return acts

    async def _first_suggestion(self, name: str, option: dict[str, Any]) -> Any:
        """The bot's first suggestion for an option that is not in `texts`, if there is one."""
        if not option.get("autocomplete"):
            return None
        suggestions: list[dict[str, Any]] = []
        for typed_text in ("a", ""):
            description = f"suggest /{name} {option['name']}"
            act = await self._act(description, self.member.autocomplete, self.channel, name, option["name"], typed_text)
            suggestions = (act.record.autocomplete_choices if act else None) or []
        return suggestions[0]["value"] if suggestions and option["name"] not in self.texts else None

    async def try_menus(self, message: Message) -> list[Act]:
        """Try every context menu command, on a message and on the explorer."""
        acts = []
        for command in self._visible_commands():
            target = {OF_USER: self.member, OF_MESSAGE: message}.get(command.get("type", SLASH))
            if target is not None:
                act = await self._act(
                    f"menu {command['name']}", self.member.use_menu, self.channel, command["name"], target
                )
                acts.extend([act] if act else [])
        return acts

    def _visible_commands(self) -> list[dict[str, Any]]:
        backend = self.member.loopback.world.backend
        return list(backend.visible_commands(user_id=self.member.id, channel_id=self.channel.id))

    async def follow_answers(self, acts: list[Act], depth: int = 8) -> None:
        """Press and choose everything under the answers, and under the answers to that."""
        while acts and depth:
            next_acts = []
            for act in acts:
                if act.record.modal:
                    form = await self._act("form", self.member.submit, act, self._fill_form(act.record.modal))
                    next_acts.extend([form] if form else [])
                elif message := act.message:
                    next_acts.extend(await self._use_components(act, message))
            acts = next_acts
            depth = depth - 1

    async def _use_components(self, act: Act, message: Message) -> list[Act]:
        """Use one component of each kind in the message. Repeats the act where a press removed the component."""
        acts = []
        current_act = act
        for each in list(walk_components(message.components)):
            name = each.get("custom_id")
            kind = VARIES.sub("…", name or "")
            if not name or each.get("disabled") or kind in self._tried_kinds:
                continue
            self._tried_kinds.add(kind)
            if name not in _custom_ids(current_act):
                current_act = await self._repeat(act) or current_act
            new_act = await self._use_component(current_act, each)
            acts.extend([new_act] if new_act else [])
        return acts

    async def _use_component(self, act: Act, each: dict[str, Any]) -> Act | None:
        """Press a button or choose from a menu under an act's answer."""
        name = each["custom_id"]
        message = act.message
        if message is None:
            return None
        if each["type"] == BUTTON:
            new_act = await self._act(f"press {name}", self.member.press, message, custom_id=name)
        else:
            new_act = await self._act(f"choose {name}", self.member.select, message, self._values(each), custom_id=name)
        if new_act:
            self._origins[new_act.record.id] = (act, each)
        return new_act

    async def _repeat(self, act: Act) -> Act | None:
        """Repeats the same act, from the command on, to get back to a component."""
        origin = self._origins.get(act.record.id)
        if origin is None:
            return None
        if isinstance(origin[0], Act):
            before = await self._repeat(origin[0])
            return await self._use_component(before, origin[1]) if before else None
        return await self._act("again", *origin[0], **origin[1])

    async def _act(self, description: str, method: Any, *args: Any, **options: Any) -> Act | None:
        """Waits for the act's answer. None where simcord says that a real member could not do it any more."""
        try:
            act: Act = await method(*args, **options)
        except (SetupError, BackendError) as error:
            self.steps.append(f"{description}: {error}")
            return None
        self.steps.append(description)
        if method == self.member.slash:
            self._origins[act.record.id] = ((method, *args), options)
        try:
            return await act.wait_for_response(15.0)
        except AssertionError:
            self.unanswered_steps.append(description)
            return None

    def _value(self, option: dict[str, Any]) -> Any:
        kind = option["type"]
        if option.get("choices"):
            return option["choices"][0]["value"]
        values_by_kind: dict[int, Any] = {
            TEXT: self.texts.get(option["name"], "apple")[: option.get("max_length", 100)],
            INTEGER: max(1, option.get("min_value", 1)),
            NUMBER: float(max(1, option.get("min_value", 1))),
            BOOLEAN: True,
            MEMBER: self.member.actor,
            MENTIONED: self.member.actor,
            CHANNEL: self.channel,
            ROLE: self.role,
            FILE: ("picture.png", self.file),
        }
        return values_by_kind[kind]

    def _values(self, menu: dict[str, Any]) -> list[Any]:
        if menu["type"] == MENU:
            return [menu["options"][0]["value"]][: menu.get("max_values", 1)]
        values_by_menu = {
            PEOPLE: self.member.actor,
            ANYBODY: self.member.actor,
            ROLES: self.role,
            CHANNELS: self.channel,
        }
        return [values_by_menu[menu["type"]]]

    def _fill_form(self, modal: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for each in walk_components(modal.get("components") or ()):
            if (name := each.get("custom_id")) is None:
                continue
            if each["type"] == 4:  # a text
                values[name] = each.get("value") or "1"
            elif each["type"] in (MENU, PEOPLE, ROLES, ANYBODY, CHANNELS):
                values[name] = self._values(each)
        return values


def _custom_ids(act: Act) -> set[str]:
    """The custom ids that an act's answer has now."""
    return {
        each["custom_id"]
        for each in walk_components(act.message.components if act.message else ())
        if "custom_id" in each
    }
