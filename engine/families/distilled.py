"""Whether a model was made to draw in few steps, without guidance. Its name says so, by custom."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.job import Sampler

CONSISTENT_STEPS, DISTILLED_STEPS = 8, 4
_WORDS = re.compile(r"(^|[^a-z])(turbo|lightning|hyper|lcm|schnell|dmd2?)([^a-z]|$)", re.IGNORECASE)


def guidance_for(name: str, usual: float) -> float:
    """The default guidance of a model of this name: 1, which is none, where it was distilled, else the kind's usual."""
    return 1.0 if _WORDS.search(name) else usual


def few_steps(
    name: str, scheduler_config: Mapping[str, Any], samplers: Sequence[Sampler]
) -> tuple[int, Sampler] | None:
    """Steps and sampler of a model that was made for few of them; None for others."""
    word = _WORDS.search(name)
    consistent = scheduler_config.get("_class_name") == "LCMScheduler" or (word and word[2].lower() == "lcm")
    if consistent and "lcm" in samplers:
        return CONSISTENT_STEPS, "lcm"
    return (DISTILLED_STEPS, "euler") if word and "euler" in samplers else None
