"""The prompt that a steered picture ended with, as somebody would type it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from engine.contract import MAX_STEPS, Concept, Recipe, Task, recipe_at_step


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
