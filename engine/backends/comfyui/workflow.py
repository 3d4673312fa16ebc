"""A ComfyUI workflow in API format with named slots, which a picture's values fill. Pure.

A slot is `%seed%` in an input, or in the title of a node whose input of the usual name it is. The second needs no text
editor: titles are changed in ComfyUI itself.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

MAX_NODES = 500
SLOT_PATTERN = re.compile(r"%([a-z]+)%")
# The slots, each with the inputs that a title of that name means, in order of preference.
TITLE_INPUTS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("text", "prompt", "string", "value"),
    "negative": ("text", "prompt", "string", "value"),
    "seed": ("seed", "noise_seed", "value"),
    "steps": ("steps", "value"),
    "guidance": ("cfg", "guidance", "value"),
    "width": ("width", "value"),
    "height": ("height", "value"),
    "sampler": ("sampler_name",),
    "scheduler": ("scheduler",),
    "model": ("ckpt_name", "unet_name", "model_name"),
    "picture": ("image",),
    "mask": ("mask", "image"),
    "strength": ("denoise", "strength"),
}
SEVERAL = {"size": ("width", "height")}  # a title that means several slots
SlotValue = str | int | float


class WrongWorkflow(ValueError):
    """The workflow cannot be used; the text is one sentence."""


@dataclass(frozen=True)
class SlotPlace:
    """Where a slot is: the node's class and input."""

    class_type: str
    input: str


@dataclass(frozen=True)
class Workflow:
    """`nodes`: by id, with `%name%` in each slot. `usual`: what stood in slots that a title named."""

    nodes: Mapping[str, Any]
    places: Mapping[str, tuple[SlotPlace, ...]]
    usual: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def has_slot(self, name: str) -> bool:
        return name in self.places

    @property
    def version(self) -> str:
        """Changes with anything in the workflow."""
        return hashlib.sha256(json.dumps(self.nodes, sort_keys=True).encode()).hexdigest()

    def fill(self, values: Mapping[str, SlotValue]) -> dict[str, Any]:
        """Return the nodes with the values in their slots. A slot that fills a whole input keeps the value's type."""
        nodes = copy.deepcopy(dict(self.nodes))
        for node in nodes.values():
            node["inputs"] = {name: _fill_value(value, values) for name, value in node["inputs"].items()}
        return nodes


def parse_workflow(text: str) -> Workflow:
    """Return the workflow of a file. Raises `WrongWorkflow`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongWorkflow("The workflow is no JSON.") from error
    if isinstance(value, dict) and {"nodes", "links"} <= cast(dict[str, Any], value).keys():
        raise WrongWorkflow("The workflow is in the editor's format: export it with “Export (API)”.")
    nodes = _check_nodes(cast(object, value))
    usual = dict(_name_slots_by_title(nodes))
    places: dict[str, tuple[SlotPlace, ...]] = {}
    for node in nodes.values():
        for name, content in node["inputs"].items():
            for slot in _find_slots(content):
                places[slot] = (*places.get(slot, ()), SlotPlace(node["class_type"], name))
    if "prompt" not in places:
        raise WrongWorkflow("The workflow has no slot for the prompt: write %prompt% where the text belongs.")
    if "scheduler" in places and "sampler" not in places:
        raise WrongWorkflow("The workflow has %scheduler% without %sampler%: a sampler here names both.")
    return Workflow(nodes, places, usual)


def _check_nodes(value: object) -> dict[str, dict[str, Any]]:
    """Return the nodes by id, each with `class_type` and `inputs`."""
    if not isinstance(value, dict) or not 1 <= len(cast(dict[str, Any], value)) <= MAX_NODES:
        raise WrongWorkflow(f"A workflow in API format is an object of 1 to {MAX_NODES} nodes.")
    nodes = cast(dict[str, dict[str, Any]], value)
    for number, node in nodes.items():
        is_node = isinstance(cast(object, node), dict) and isinstance(node.get("class_type"), str)
        if not is_node or not isinstance(node.get("inputs"), dict):
            raise WrongWorkflow(f"The workflow's node {number[:40]} has no class_type or no inputs.")
    return nodes


def _name_slots_by_title(nodes: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Put `%name%` into the inputs that titles name; yield each slot with what stood there."""
    for node in nodes.values():
        title = str(cast(dict[str, Any], node.get("_meta") or {}).get("title", ""))
        slots = [part for name in SLOT_PATTERN.findall(title) for part in SEVERAL.get(name, (name,))]
        if "sampler" in slots and "scheduler" in node["inputs"]:
            slots.append("scheduler")
        for slot in slots:
            if slot not in TITLE_INPUTS:
                raise WrongWorkflow(f"The title “{title[:60]}” names a slot that does not exist: %{slot[:20]}%.")
            name = next((name for name in TITLE_INPUTS[slot] if name in node["inputs"]), None)
            if name is None:
                raise WrongWorkflow(f"The node “{title[:60]}” has no input for %{slot}%.")
            yield slot, node["inputs"][name]
            node["inputs"][name] = f"%{slot}%"


def _find_slots(content: object) -> list[str]:
    """Return the slots in an input. Other words between percent signs belong to ComfyUI, such as %date%."""
    return [name for name in SLOT_PATTERN.findall(content) if name in TITLE_INPUTS] if isinstance(content, str) else []


def _fill_value(content: object, values: Mapping[str, SlotValue]) -> object:
    if not isinstance(content, str):
        return content
    whole = SLOT_PATTERN.fullmatch(content)
    if whole and whole[1] in values:
        return values[whole[1]]
    return SLOT_PATTERN.sub(lambda match: str(values.get(match[1], match[0])), content)
