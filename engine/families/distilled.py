"""Recognises models distilled to few steps without guidance, by the customary words in their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.job import Sampler

CONSISTENT_STEPS, DISTILLED_STEPS = 8, 4
_WORDS = re.compile(r"(^|[^a-z])(turbo|lightning|hyper|lcm|schnell|dmd2?)([^a-z]|$)", re.IGNORECASE)


def guidance_for(name: str, usual: float) -> float:
    """Return the default guidance: 1, which is none, for a distilled model, else `usual`."""
    return 1.0 if _WORDS.search(name) else usual


def few_steps(
    name: str, scheduler_config: Mapping[str, Any], samplers: Sequence[Sampler]
) -> tuple[int, Sampler] | None:
    """Return steps and sampler of a model made for few steps; None for others."""
    word = _WORDS.search(name)
    consistent = scheduler_config.get("_class_name") == "LCMScheduler" or (word and word[2].lower() == "lcm")
    if consistent and "lcm" in samplers:
        return CONSISTENT_STEPS, "lcm"
    return (DISTILLED_STEPS, "euler") if word and "euler" in samplers else None
