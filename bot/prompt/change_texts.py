"""A change of a developing picture on one plain line. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from engine.contract import FULL_INTERVAL, Change, DropImages, SetConcepts, SetGuidance, SetNegative, SplitImage


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
