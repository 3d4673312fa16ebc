"""The texts of a job that the word filter reads. Pure."""

from __future__ import annotations

from engine.contract import Recipe, UpscaleTask


def member_texts(prompt: str, task: Recipe | UpscaleTask) -> tuple[str, ...]:
    """Return every text of a job that a member wrote, in it or in its parent, each once."""
    if not isinstance(task, Recipe):
        return (prompt,)
    end_prompt = task.interpolation.end_prompt if task.interpolation is not None else None
    texts = (prompt, " ".join(concept.text for concept in task.concepts), task.negative, end_prompt or "")
    return tuple(dict.fromkeys(texts))
