"""Workflows with named slots: placeholders, titles, values, and files that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.backends.comfyui.client import load_built_in_workflows
from engine.backends.comfyui.workflow import SlotPlace, WrongWorkflow, parse_workflow

TITLED: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "_meta": {"title": "KSampler %seed% %steps% %sampler%"},
        "inputs": {
            "seed": 5,
            "steps": 12,
            "cfg": 3.5,
            "sampler_name": "euler",
            "scheduler": "normal",
            "model": ["4", 0],
        },
    },
    "5": {
        "class_type": "EmptyLatentImage",
        "_meta": {"title": "%size%"},
        "inputs": {"width": 768, "height": 512, "batch_size": 1},
    },
    "6": {"class_type": "CLIPTextEncode", "_meta": {"title": "%prompt%"}, "inputs": {"text": "old", "clip": ["4", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "%date%", "images": ["8", 0]}},
}


def test_a_title_names_the_inputs_of_its_node() -> None:
    workflow = parse_workflow(json.dumps(TITLED))
    assert set(workflow.places) == {"seed", "steps", "sampler", "scheduler", "width", "height", "prompt"}
    assert workflow.places["sampler"] == (SlotPlace("KSampler", "sampler_name"),)
    assert (workflow.usual["steps"], workflow.usual["width"]) == (12, 768)
    values = {"seed": 9, "steps": 4, "sampler": "ddim", "scheduler": "karras", "width": 64, "height": 32, "prompt": "x"}
    nodes = workflow.fill(values)
    assert nodes["3"]["inputs"] == {
        "seed": 9,
        "steps": 4,
        "cfg": 3.5,
        "sampler_name": "ddim",
        "scheduler": "karras",
        "model": ["4", 0],
    }
    assert nodes["5"]["inputs"] == {"width": 64, "height": 32, "batch_size": 1}
    assert nodes["9"]["inputs"]["filename_prefix"] == "%date%", "ComfyUI's own words stay"


def test_a_slot_within_a_text_is_replaced_once_and_keeps_its_surroundings() -> None:
    text = '{"1": {"class_type": "Text", "inputs": {"text": "masterpiece, %prompt%, %seed%"}}}'
    filled = parse_workflow(text).fill({"prompt": "a %seed% lamp", "seed": 3})
    assert filled["1"]["inputs"]["text"] == "masterpiece, a %seed% lamp, 3", "a member's words are no slots"


def test_the_built_in_workflows_have_all_slots_that_their_kind_needs() -> None:
    text, picture, mask = load_built_in_workflows()
    usual = {"prompt", "negative", "seed", "steps", "guidance", "sampler", "scheduler", "model"}
    assert set(text.places) == usual | {"width", "height"}
    assert set(picture.places) == usual | {"picture", "strength"}
    assert set(mask.places) == usual | {"picture", "strength", "mask"}
    assert len({workflow.version for workflow in (text, picture, mask)}) == 3


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"1": {"class_type": "A", "inputs": {"text": "%prompt%", "scheduler": "%scheduler%"}}}',
            "%scheduler% without %sampler%",
        ),
        ("nonsense", "The workflow is no JSON."),
        ('{"nodes": [], "links": []}', "export it with “Export (API)”"),
        ("[]", "an object of 1 to 500 nodes"),
        ('{"1": {"class_type": "A"}}', "node 1 has no class_type or no inputs"),
        ('{"1": 5}', "node 1 has no class_type or no inputs"),
        ('{"1": {"class_type": "A", "inputs": {}}}', "no slot for the prompt"),
        ('{"1": {"class_type": "A", "inputs": {}, "_meta": {"title": "%seed%"}}}', "no input for %seed%"),
        ('{"1": {"class_type": "A", "inputs": {}, "_meta": {"title": "%sed%"}}}', "a slot that does not exist: %sed%"),
    ],
)
def test_a_file_that_is_no_workflow_gives_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(WrongWorkflow, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        parse_workflow(text)
