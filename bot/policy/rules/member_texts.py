"""The texts of a job that the word filter reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from engine.contract import (
    Change,
    Concept,
    DropImages,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
    UpscaleTask,
)


def member_texts(prompt: str, task: Recipe | UpscaleTask) -> tuple[str, ...]:
    """Return every text of a job that a member wrote, in it or in its parent, each once."""
    if not isinstance(task, Recipe):
        return (prompt,)
    end_prompt = task.interpolation.end_prompt if task.interpolation is not None else None
    texts = (prompt, join_texts(task.concepts), task.negative, end_prompt or "")
    return tuple(dict.fromkeys((*texts, *(text for each in task.amendments for text in amended_texts(each.change)))))


def amended_texts(change: Change) -> tuple[str, ...]:
    """Return the texts that a change brings."""
    match change:
        case SetConcepts():
            return (join_texts(change.concepts),)
        case SetNegative():
            return (change.negative,)
        case SetGuidance() | DropImages() | SplitImage():
            return ()


def join_texts(concepts: Sequence[Concept]) -> str:
    """Return the words of all concepts, as the word filter reads them."""
    return " ".join(concept.text for concept in concepts)
