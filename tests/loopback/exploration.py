"""Tries everything that a bot offers: every command, then one of each kind of button, menu and form.

Knows Discord's kinds of options and components, not what they mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simcord.backend.errors import BackendError, SetupError
from simcord.interactions import command_leaves

from loopback.members import Act, Person
from loopback.unwritten_rules import inside

if TYPE_CHECKING:
    from simcord.backend.models import Message
    from simcord.builders import ChannelHandle

VARIES = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}|\d+")  # ids of jobs, numbers of pages and pictures
SLASH, OF_USER, OF_MESSAGE = 1, 2, 3
BUTTON, MENU, PEOPLE, ROLES, ANYBODY, CHANNELS = 2, 3, 5, 6, 7, 8
TEXT, INTEGER, BOOLEAN, MEMBER, CHANNEL, ROLE, MENTIONED, NUMBER, FILE = 3, 4, 5, 6, 7, 8, 9, 10, 11


@dataclass
class Walker:
    """A member who tries everything once. `said` describes each step."""

    who: Person
    channel: ChannelHandle
    role: Any
    file: bytes
    texts: dict[str, str] = field(default_factory=dict)  # option → the text to type
    said: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)  # steps without an answer in time
    _tried_kinds: set[str] = field(default_factory=set)
    _origins: dict[int, tuple[Any, dict[str, Any]]] = field(default_factory=dict)  # act → how to repeat it

    async def commands(self) -> list[Act]:
        """Try every slash command with its required options and with all, using the bot's suggestions."""
        acts = []
        for command in self._visible_commands():
            if command.get("type", SLASH) == SLASH:
                for path, leaf in command_leaves(command):
                    acts.extend(await self._try_command(" ".join(path), leaf.get("options") or []))
        return acts

    async def _try_command(self, name: str, options: list[dict[str, Any]]) -> list[Act]:
        acts = []
        every = {each["name"]: await self._first_suggestion(name, each) or self._value(each) for each in options}
        required = {each["name"]: every[each["name"]] for each in options if each.get("required")}
        for values in [required, every] if every != required else [required]:
            act = await self._do(f"/{name} {' '.join(values)}", self.who.slash, self.channel, name, **values)
            acts.extend([act] if act else [])
        return acts

    async def _first_suggestion(self, name: str, option: dict[str, Any]) -> Any:
        """The bot's first suggestion for an option that is not in `texts`, if there is one."""
        if not option.get("autocomplete"):
            return None
        offered: list[dict[str, Any]] = []
        for typed in ("a", ""):
            what = f"suggest /{name} {option['name']}"
            act = await self._do(what, self.who.autocomplete, self.channel, name, option["name"], typed)
            offered = (act.record.autocomplete_choices if act else None) or []
        return offered[0]["value"] if offered and option["name"] not in self.texts else None

    async def menus(self, message: Message) -> list[Act]:
        """Try every context menu command, on a message and on the walker."""
        acts = []
        for command in self._visible_commands():
            target = {OF_USER: self.who, OF_MESSAGE: message}.get(command.get("type", SLASH))
            if target is not None:
                act = await self._do(f"menu {command['name']}", self.who.menu, self.channel, command["name"], target)
                acts.extend([act] if act else [])
        return acts

    def _visible_commands(self) -> list[dict[str, Any]]:
        backend = self.who.loopback.world.backend
        return list(backend.visible_commands(user_id=self.who.id, channel_id=self.channel.id))

    async def follow(self, acts: list[Act], depth: int = 8) -> None:
        """Press and choose everything under the answers, and under the answers to that."""
        while acts and depth:
            following = []
            for act in acts:
                if act.record.modal:
                    form = await self._do("form", self.who.submit, act, self._fill_form(act.record.modal))
                    following.extend([form] if form else [])
                elif message := act.message:
                    following.extend(await self._use_components(act, message))
            acts, depth = following, depth - 1

    async def _use_components(self, act: Act, message: Message) -> list[Act]:
        """Use one component of each kind in the message. Repeats the act where a press removed the component."""
        acts, here = [], act
        for each in list(inside(message.components)):
            name = each.get("custom_id")
            kind = VARIES.sub("…", name or "")
            if not name or each.get("disabled") or kind in self._tried_kinds:
                continue
            self._tried_kinds.add(kind)
            if name not in _custom_ids(here):
                here = await self._repeat(act) or here
            new_act = await self._use_component(here, each)
            acts.extend([new_act] if new_act else [])
        return acts

    async def _use_component(self, act: Act, each: dict[str, Any]) -> Act | None:
        """Press a button or choose from a menu under an act's answer."""
        name, message = each["custom_id"], act.message
        if message is None:
            return None
        if each["type"] == BUTTON:
            new_act = await self._do(f"press {name}", self.who.press, message, custom_id=name)
        else:
            new_act = await self._do(f"choose {name}", self.who.select, message, self._values(each), custom_id=name)
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
        return await self._do("again", *origin[0], **origin[1])

    async def _do(self, what: str, do: Any, *args: Any, **options: Any) -> Act | None:
        """Waits for the act's answer. None where simcord says that a real member could not do it any more."""
        try:
            act: Act = await do(*args, **options)
        except (SetupError, BackendError) as error:
            self.said.append(f"{what}: {error}")
            return None
        self.said.append(what)
        if do == self.who.slash:
            self._origins[act.record.id] = ((do, *args), options)
        try:
            return await act.taken(15.0)
        except AssertionError:
            self.silent.append(what)
            return None

    def _value(self, option: dict[str, Any]) -> Any:
        kind = option["type"]
        if option.get("choices"):
            return option["choices"][0]["value"]
        plain: dict[int, Any] = {
            TEXT: self.texts.get(option["name"], "apple")[: option.get("max_length", 100)],
            INTEGER: max(1, option.get("min_value", 1)),
            NUMBER: float(max(1, option.get("min_value", 1))),
            BOOLEAN: True,
            MEMBER: self.who.actor,
            MENTIONED: self.who.actor,
            CHANNEL: self.channel,
            ROLE: self.role,
            FILE: ("picture.png", self.file),
        }
        return plain[kind]

    def _values(self, menu: dict[str, Any]) -> list[Any]:
        if menu["type"] == MENU:
            return [menu["options"][0]["value"]][: menu.get("max_values", 1)]
        found = {PEOPLE: self.who.actor, ANYBODY: self.who.actor, ROLES: self.role, CHANNELS: self.channel}
        return [found[menu["type"]]]

    def _fill_form(self, modal: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for each in inside(modal.get("components") or ()):
            if (name := each.get("custom_id")) is None:
                continue
            if each["type"] == 4:  # a text
                values[name] = each.get("value") or "1"
            elif each["type"] in (MENU, PEOPLE, ROLES, ANYBODY, CHANNELS):
                values[name] = self._values(each)
        return values


def _custom_ids(act: Act) -> set[str]:
    """The custom ids that an act's answer has now."""
    return {each["custom_id"] for each in inside(act.message.components if act.message else ()) if "custom_id" in each}
