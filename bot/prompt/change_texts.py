"""A change of a developing picture on one plain line. Pure.

The prompt that a steered picture ended with, as somebody would type it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.contract import (
    FULL_INTERVAL,
    MAX_STEPS,
    Change,
    Concept,
    DropImages,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    Task,
    recipe_at_step,
)


def describe_change(change: Change) -> str:
    """Return what a change does: “fox 0.4, terrier 0.6”, “without fog”, “guidance 6”, “drops image 2”."""
    match change:
        case SetConcepts():
            return _describe_words(change)
        case SetNegative():
            return f"without {change.negative}" if change.negative else "without negative words"
        case SetGuidance():
            return _describe_guidance(change)
        case DropImages():
            return f"drops {name_images(change.images)}"
        case SplitImage():
            return f"splits {name_images((change.image,))} into {len(change.places) + 1}"


def name_images(images: Sequence[int]) -> str:
    """Name images as people count them: “image 2”, “images 1 and 3”, “images 1, 2 and 4”."""
    numbers = [str(image + 1) for image in sorted(set(images))]
    if len(numbers) == 1:
        return f"image {numbers[0]}"
    return f"images {', '.join(numbers[:-1])} and {numbers[-1]}"


def _describe_words(change: SetConcepts) -> str:
    fade = f" over {change.fade_steps} steps" if change.fade_steps > 1 else ""
    if len(change.concepts) == 1:
        return change.concepts[0].text + fade
    return ", ".join(f"{concept.text} {concept.weight:.2g}" for concept in change.concepts) + fade


def _describe_guidance(change: SetGuidance) -> str:
    has_interval = (change.start, change.stop) != FULL_INTERVAL
    interval = f" from {change.start:.0%} to {change.stop:.0%} of the steps" if has_interval else ""
    return f"guidance {change.guidance:g}{interval}"


def final_prompt(prompt: str, task: Task) -> str:
    """Return the words of the last step, with `--no`; the typed prompt, flags included, if nobody changed them."""
    return prompt_at_step(prompt, task, MAX_STEPS)


def prompt_at_step(prompt: str, task: Task, step: int) -> str:
    """Return the words of one step, as `final_prompt` does."""
    if not isinstance(task, Recipe) or not task.amendments:
        return prompt
    state = recipe_at_step(task, min(step, task.end_step - 1))
    if (state.concepts, state.negative) == (task.concepts, task.negative):
        return prompt
    words = write_concepts(state.concepts) + (" --mix" if state.mixed else "")
    return f"{words} --no {state.negative}" if state.negative else words


def write_concepts(concepts: Sequence[Concept]) -> str:
    """Return concepts in the grammar of prompts: `a fox`, `fox::0.4 terrier::0.6`."""
    if len(concepts) == 1:
        return concepts[0].text
    return " ".join(f"{concept.text}::{concept.weight:.3g}" for concept in concepts)
